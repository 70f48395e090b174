"""What is written: whole or not at all, where the user said, and never in place of what is no file."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xent import files
from xent.cli import load
from xent.errors import DataError
from xent.files import check_writable, is_standard_output, make_folder, write_text, write_together

XENT = [sys.executable, "-m", "xent"]
CSV = "id,y,p_0,p_1\n1,0,0.5,0.5\n2,1,0.25,0.75\n3,1,0.5,0.5\n"
SCORE = ["score", "a.csv", "--label", "y", "--proba", "p_*"]
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text(CSV)
    return tmp_path


def invoke(*arguments: str):
    return CliRunner().invoke(load(), list(map(str, arguments)))


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


# Regular files.


def test_a_new_file_has_the_permissions_of_any_other():
    Path("other").write_text("")
    assert write_text("new", "text ü") == Path("new")
    assert Path("new").read_text(encoding="utf-8") == "text ü"
    assert Path("new").stat().st_mode == Path("other").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755])
def test_an_old_file_keeps_its_permission_bits(mode):
    Path("old").write_text("old")
    Path("old").chmod(mode)
    write_text("old", "new")
    assert Path("old").read_text() == "new"
    assert stat.S_IMODE(Path("old").stat().st_mode) == mode


def test_nobody_may_read_the_temporary_file_who_may_not_read_the_old_one(monkeypatch):
    Path("old").write_text("secret")
    Path("old").chmod(0o600)
    seen = []
    replace = os.replace

    def watched(source, target):
        seen.append(stat.S_IMODE(os.stat(source).st_mode))
        replace(source, target)

    opened = os.open

    def watched_open(path, flags, mode=0o777, **options):
        descriptor = opened(path, flags, mode, **options)
        if flags & os.O_EXCL:
            seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "replace", watched)
    monkeypatch.setattr(os, "open", watched_open)
    write_text("old", "new secret")
    assert seen == [0o600, 0o600]


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """A file whose disk is full when something is written."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        full()


@pytest.mark.parametrize("when", ["while it is written", "when it takes its place"])
def test_a_full_disk_leaves_the_old_files_untouched(when, monkeypatch):
    write_together({"one": "old", "two": "old"})
    before = names()
    with monkeypatch.context() as patched:
        if when == "while it is written":
            patched.setattr(files, "open", lambda *a: FullDisk(os.fdopen(*a)), raising=False)
        else:
            patched.setattr(os, "replace", full)
        with pytest.raises(DataError, match=r"one: cannot be written \(No space left on device\)"):
            write_together({"one": "new", "two": "new"})
    assert names() == before
    assert [Path(name).read_text() for name in ("one", "two")] == ["old", "old"]


def test_files_are_written_together_or_not_at_all():
    write_text("one", "old")
    with pytest.raises(DataError, match="missing"):
        write_together({"one": "new", "missing/two": "new"})
    assert Path("one").read_text() == "old"
    assert names() == ["a.csv", "one"]


def test_an_interrupted_write_leaves_the_old_file(monkeypatch):
    write_text("one", "old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text("one", "new")
    assert Path("one").read_text() == "old"
    assert names() == ["a.csv", "one"]


def test_a_lone_surrogate_is_written_as_an_escape():
    assert write_text("one", '"\udcff"').read_text() == '"\\udcff"'
    assert json.loads(Path("one").read_text()) == "\udcff"


# Symbolic links.


def test_a_link_stays_and_its_target_is_replaced():
    Path("deep").mkdir()
    Path("deep/target").write_text("old")
    Path("deep/target").chmod(0o640)
    Path("one").symlink_to("two")
    Path("two").symlink_to("deep/target")
    check_writable("one")
    write_text("one", "new")
    assert Path("one").readlink() == Path("two")
    assert Path("two").readlink() == Path("deep/target")
    assert Path("deep/target").read_text() == "new"
    assert stat.S_IMODE(Path("deep/target").stat().st_mode) == 0o640


def test_a_dangling_link_makes_its_target():
    Path("deep").mkdir()
    Path("link").symlink_to("deep/target")
    check_writable("link")
    write_text("link", "new")
    assert Path("link").is_symlink()
    assert Path("deep/target").read_text() == "new"


@pytest.mark.parametrize("target", ["no/such/folder", "link", "a.csv/below"])
def test_a_link_that_leads_nowhere_is_refused(target):
    Path("link").symlink_to(target)
    for call in (check_writable, lambda path: write_text(path, "new")):
        with pytest.raises(DataError, match="link: cannot be written"):
            call("link")
    assert Path("link").is_symlink()
    assert names() == ["a.csv", "link"]


# What is no file.


def test_a_named_pipe_is_written_to_and_stays():
    os.mkfifo("pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text()))
    check_writable("pipe")
    reader.start()
    write_text("pipe", "through the pipe")
    reader.join(timeout=20)
    assert read == ["through the pipe"]
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_null_device_is_written_to_and_stays(option):
    """Through a link of its own too, which once was replaced by a file, and the device with it."""
    before = os.stat(os.devnull)
    Path("null").symlink_to(os.devnull)
    for name in (os.devnull, "null"):
        result = invoke(*SCORE, option, name)
        assert result.exit_code == 0, result.stderr
    after = os.stat(os.devnull)
    assert (before.st_rdev, before.st_ino, before.st_mode) == (after.st_rdev, after.st_ino, after.st_mode)
    assert Path("null").is_symlink()


def run(*arguments: str, **options):
    return subprocess.run(list(arguments), capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("into", ["a pipe", "a file"])
def test_standard_output_by_its_names_gets_the_record_and_nothing_else(name, into):
    if into == "a pipe":
        done = run(*XENT, *SCORE, "--json", name)
        text = done.stdout
    else:
        with open("out", "w") as out:
            out.write("[before,")
            out.flush()
            done = subprocess.run([*XENT, *SCORE, "--json", name], stdout=out, stderr=subprocess.PIPE, timeout=120)
            out.write("]")
        before, comma, text = Path("out").read_text().partition(",")
        assert (before, comma) == ("[before", ","), "what was there is kept"
        assert text.endswith("]"), "whoever writes next goes on behind it"
        text = text[:-1]
    assert done.returncode == 0, done.stderr
    assert json.loads(text)["record"] == "xent score"


def test_process_substitution_of_a_shell_is_written_to():
    command = f"{sys.executable} -m xent {' '.join(SCORE).replace('*', chr(92) + '*')} --json >(cat > copy) | cat; wait"
    done = run("bash", "-c", f"{command}; for i in 1 2 3 4 5 6 7 8 9; do test -s copy && break; sleep 0.2; done")
    assert "Traceback" not in done.stderr
    assert json.loads(Path("copy").read_text())["record"] == "xent score"
    assert "nats per row" in done.stdout


def test_a_descriptor_that_is_not_open_for_writing_is_refused():
    with open("a.csv") as file, pytest.raises(DataError, match="cannot be written"):
        check_writable(f"/dev/fd/{file.fileno()}")
    for number in ("987654", "9" * 40):
        with pytest.raises(DataError, match="cannot be written"):
            check_writable(f"/dev/fd/{number}")
    assert Path("a.csv").read_text() == CSV
    assert not is_standard_output("/dev/fd/2")
    assert not is_standard_output("a\0b")


# Refused before the work.

REFUSED = {
    "a folder": ".",
    "a folder that does not exist": "no/such/out",
    "a folder by its ending": "new/",
    "a file as a folder": "a.csv/out",
    "a name of 300 characters": "n" * 300,
    "a path of 5000 characters": "/".join(["n" * 99] * 50),
    "a NUL byte": "a\0b",
    "an empty name": "",
    "a lone surrogate": "a\ud800b",
    "a folder of the system where nobody makes files": "/proc/out",
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("option", ["--json", "--html"])
def test_what_cannot_be_written_is_one_line_before_the_work(case, option, monkeypatch):
    import xent.scoring

    monkeypatch.setattr(xent.scoring, "score", lambda *a, **k: pytest.fail("the work began"))
    result = invoke(*SCORE, option, REFUSED[case])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert option in result.stderr
    assert "cannot be written" in result.stderr
    assert result.stderr.count("\n") == 1
    assert names() == ["a.csv"]


@as_user
def test_a_folder_or_file_without_permission_is_refused():
    Path("closed").mkdir(mode=0o500)
    Path("read only").write_text("old")
    Path("read only").chmod(0o400)
    for name in ("closed/out", "read only"):
        with pytest.raises(DataError, match="Permission denied"):
            check_writable(name)
    assert Path("read only").read_text() == "old"


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("link", [False, True])
def test_the_input_is_never_replaced(option, link):
    name = "a.csv"
    if link:
        name = "link"
        Path(name).symlink_to("a.csv")
    result = invoke(*SCORE, option, name)
    assert result.exit_code == 2
    assert "the input" in result.stderr
    assert Path("a.csv").read_text() == CSV


def test_two_outputs_with_one_name_are_refused():
    result = invoke(*SCORE, "--json", "out", "--html", "./out")
    assert result.exit_code == 2
    assert "also --json" in result.stderr
    assert names() == ["a.csv"]


def test_compare_refuses_to_replace_either_input():
    Path("b.csv").write_text(CSV)
    for name in ("a.csv", "b.csv"):
        arguments = ["compare", "a.csv", "b.csv", "--id", "id", "--label", "y", "--proba", "p_*", "--json", name]
        assert invoke(*arguments).exit_code == 2
        assert Path(name).read_text() == CSV


@pytest.mark.parametrize("name", ["a.csv", "a.csv/out", "n" * 300, "a\0b", "/proc/out"])
def test_a_folder_for_reports_that_cannot_be_is_refused_before_the_work(name, monkeypatch):
    import xent.why

    monkeypatch.setattr(xent.why, "run", lambda *a: pytest.fail("the work began"))
    result = invoke("why", "iris", "--quick", "--out", name)
    assert result.exit_code == 2, result.output
    assert "--out" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("file", ["why.html", "why.json"])
def test_a_report_that_cannot_be_written_is_found_out_before_the_work(file, monkeypatch):
    import xent.why

    monkeypatch.setattr(xent.why, "run", lambda *a: pytest.fail("the work began"))
    Path("out", file).mkdir(parents=True)
    result = invoke("why", "iris", "--quick", "--out", "out")
    assert result.exit_code == 2
    assert f"--out out/{file}: cannot be written (it is a folder)" in result.stderr


def test_a_disk_that_fills_up_during_the_work_is_one_line(monkeypatch):
    Path("out").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    result = invoke(*SCORE, "--json", "out")
    assert result.exit_code == 2
    assert "out: cannot be written (No space left on device)" in result.stderr
    assert Path("out").read_text() == "old"
    assert names() == ["a.csv", "out"]


def test_a_check_changes_nothing(folder):
    before = folder.stat().st_mtime_ns
    Path("old").write_text("old")
    for name in ("new", "old"):
        check_writable(name)
    assert names() == ["a.csv", "old"]
    assert Path("old").read_text() == "old"
    assert folder.stat().st_mtime_ns >= before


def test_make_folder_makes_those_above_it_too():
    make_folder("one/two")
    make_folder("one/two")
    assert Path("one/two").is_dir()
