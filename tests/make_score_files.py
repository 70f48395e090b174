"""Makes tests/files: one table of predictions in the forms in which other tools write it.

    python tests/make_score_files.py

pandas, Polars, PyArrow, NumPy and openpyxl write theirs themselves; the files of tools that are not installed here (R,
Spark, H2O, CatBoost, LightGBM, KNIME, RapidMiner, caret, log-probabilities of APIs) are written as their documentation
describes them. tests/test_score_files.py says how each is scored, and holds all to the figures of the same arrays.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).parent / "files"
CLASSES = ("ant", "bee", "cow")
ROWS = 24


def table() -> dict[str, np.ndarray]:
    """The rows: ids with leading zeros, labels, probabilities, weights and segments."""
    rng = np.random.default_rng(11)
    p = rng.dirichlet(np.ones(3), ROWS)
    label = np.array([rng.choice(3, p=q) for q in p])
    names = np.array([f"{k:04d}" for k in range(ROWS)])
    country = np.where(np.arange(ROWS) % 3 == 0, "de", "fr")
    return {"id": names, "p": p, "label": label, "country": country}


DATA = table()
P, LABEL, IDS, COUNTRY = DATA["p"], DATA["label"], DATA["id"], DATA["country"]
NAMES = np.array(CLASSES)[LABEL]
FRAME = pd.DataFrame(
    {"id": IDS, "animal": NAMES, **{f"p_{c}": P[:, k] for k, c in enumerate(CLASSES)}, "country": COUNTRY}
)
DECIMALS = 6
"""Of the file that `%.6f` wrote."""


def text(lines: list[list[object]], separator: str = ",", end: str = "\n") -> str:
    return "".join(separator.join(map(str, line)) + end for line in lines)


def quoted(values: list[object]) -> list[object]:
    return [f'"{value}"' if isinstance(value, str) else value for value in values]


def rows(*columns) -> list[list[object]]:
    return [list(line) for line in zip(*(np.asarray(c).tolist() for c in columns), strict=True)]


def comma(value: float) -> str:
    return repr(float(value)).replace(".", ",")


def write(name: str, content: str | bytes) -> None:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def of_pandas() -> None:
    FRAME.to_csv(FOLDER / "pandas_index.csv")
    FRAME.to_csv(FOLDER / "pandas.csv.gz", index=False, compression={"method": "gzip", "mtime": 1})
    FRAME.to_json(FOLDER / "pandas_records.json", orient="records", double_precision=15)
    FRAME.to_csv(FOLDER / "pandas_six_decimals.csv", index=False, float_format=f"%.{DECIMALS}f")
    FRAME.to_parquet(FOLDER / "pandas.parquet")
    FRAME.to_excel(FOLDER / "pandas.xlsx", index=False)
    pd.DataFrame(P).assign(y=LABEL).to_csv(FOLDER / "pandas_numbered_columns.csv", index=False)
    write("pandas_lines.jsonl", "".join(json.dumps(record) + "\n" for record in FRAME.to_dict("records")))


def of_polars_and_arrow() -> None:
    frame = pl.from_pandas(FRAME)
    frame.with_columns(animal=pl.col("animal").cast(pl.Enum(["cow", "bee", "ant"]))).write_parquet(
        FOLDER / "polars_enum.parquet"
    )
    frame.write_ipc(FOLDER / "polars.arrow")
    frame.select("id", "animal", probabilities=pl.concat_list("p_ant", "p_bee", "p_cow")).write_parquet(
        FOLDER / "polars_lists.parquet"
    )
    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    labels = table.column("animal").dictionary_encode()
    pq.write_table(table.set_column(1, "animal", labels), FOLDER / "pyarrow_dictionary.parquet")
    with pa.ipc.new_stream(FOLDER / "huggingface_datasets.arrow", table.schema) as stream:
        stream.write_table(table)
    frame.write_csv(FOLDER / "duckdb_pipe.csv", separator="|")


def of_numpy() -> None:
    np.savez(FOLDER / "numpy.npz", proba=P, y=LABEL, where=COUNTRY)
    np.save(FOLDER / "sklearn_predict_proba.npy", P)
    np.save(FOLDER / "sklearn_y_test.npy", NAMES)
    np.savetxt(FOLDER / "numpy_savetxt.txt", np.column_stack([P, LABEL]))
    np.savetxt(FOLDER / "xgboost_no_header.csv", P, delimiter=",", fmt="%.17g")
    np.savetxt(FOLDER / "lightgbm_predict_result.txt", P, delimiter="\t", fmt="%.17g")
    write("labels_only.txt", "animal\n" + "".join(f"{name}\n" for name in NAMES))


def of_r() -> None:
    head = ["id", "animal", *(f"p_{c}" for c in CLASSES)]
    lines = rows(IDS, NAMES, *P.T)
    numbered = [[str(k + 1), *line] for k, line in enumerate(lines)]
    write("r_write_csv.csv", text([quoted(["", *head]), *map(quoted, numbered)]))
    with_commas = [[line[0], line[1], *map(comma, line[2:])] for line in lines]
    write("r_write_csv2.csv", text([quoted(head), *([f'"{a}"', f'"{b}"', *q] for a, b, *q in with_commas)], ";"))
    write("r_write_table.tsv", text([quoted(head), *map(quoted, numbered)], "\t"))
    write("r_write_table_blanks.txt", text([quoted(head), *map(quoted, numbered)], " "))
    write("r_caret.csv", text([["obs", "pred", *CLASSES], *rows(NAMES, NAMES, *P.T)]))


def of_excel() -> None:
    head = ["Nr", "Tier", *(f"p {c}" for c in CLASSES)]
    lines = [[a, b, *map(comma, q)] for a, b, *q in rows(IDS, NAMES, *P.T)]
    write("excel_german.csv", "\ufeff" + text([head, *lines], ";", "\r\n"))


def of_kaggle() -> None:
    head = ["id", *(f"Class_{k + 1}" for k in range(3))]
    submission = text([head, *rows(IDS, *P.T)])
    write("kaggle_submission.csv", submission)
    with zipfile.ZipFile(FOLDER / "kaggle_submission.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("submission.csv"), submission)
    order = np.random.default_rng(0).permutation(ROWS)
    usage = np.where(COUNTRY == "de", "Public", "Private")
    truth = rows(IDS[order], [f"Class_{k + 1}" for k in LABEL[order]], usage[order])
    write("kaggle_solution.csv", text([["id", "target", "Usage"], *truth]))


def of_spark() -> None:
    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    for country in ("de", "fr"):
        part = table.filter(pa.compute.equal(table["country"], country)).drop_columns(["country"])
        folder = FOLDER / "spark_partitions" / f"country={country}"
        folder.mkdir(parents=True)
        pq.write_table(part.slice(0, 5), folder / "part-00000-c000.snappy.parquet", compression="snappy")
        pq.write_table(part.slice(5), folder / "part-00001-c000.snappy.parquet", compression="snappy")
        pq.write_table(part.slice(0, 0), folder / "part-00002-c000.snappy.parquet", compression="snappy")
    write("spark_partitions/_SUCCESS", "")
    head = list(FRAME.columns)
    lines = rows(*(FRAME[name] for name in head))
    write("spark_csv/part-00000-c000.csv", text([head]))
    write("spark_csv/part-00001-c000.csv", text([head, *lines[:10]]))
    write("spark_csv/part-00002-c000.csv", "")
    write("spark_csv/part-00003-c000.csv", text([head, *lines[10:]]))
    write("spark_csv/.part-00001-c000.csv.crc", "crc")
    write("spark_csv/_SUCCESS", "")
    fields = [
        ("type", pa.int8()),
        ("size", pa.int32()),
        ("indices", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),
    ]
    vectors: list[dict[str, object]] = [{"type": 1, "size": None, "indices": None, "values": list(q)} for q in P]
    vectors[3] = {"type": 0, "size": 3, "indices": [0, 1, 2], "values": list(P[3])}
    columns = {"label": LABEL.astype(float), "probability": pa.array(vectors, pa.struct(fields))}
    pq.write_table(pa.table(columns), FOLDER / "spark_ml_vectors.parquet")
    maps = pa.array([list(zip(CLASSES, q, strict=True)) for q in P.tolist()], pa.map_(pa.string(), pa.float64()))
    pq.write_table(pa.table({"animal": NAMES, "scores": maps}), FOLDER / "spark_map.parquet")
    structs = pa.array([dict(zip(CLASSES, q, strict=True)) for q in P.tolist()])
    pq.write_table(pa.table({"animal": NAMES, "scores": structs}), FOLDER / "spark_struct.parquet")


def of_machine_learning_tools() -> None:
    is_bee = np.where(LABEL == 1, "yes", "no")
    predicted = np.where(P[:, 1] > 0.5, "yes", "no")
    write("h2o_binary.csv", text([["predict", "no", "yes", "bought"], *rows(predicted, 1 - P[:, 1], P[:, 1], is_bee)]))
    write("h2o.csv", text([["predict", *(f"p{k}" for k in range(3))], *rows(P.argmax(axis=1), *P.T)]))
    head = ["SampleId", *(f"Probability:Class={c}" for c in CLASSES), "Label"]
    write("catboost_eval.tsv", text([head, *rows(np.arange(ROWS), *P.T, NAMES)], "\t"))
    write(
        "knime.csv", text([quoted(["animal", *(f"P (animal={c})" for c in CLASSES)]), *map(quoted, rows(NAMES, *P.T))])
    )
    head = ["label", "prediction(label)", *(f"confidence({c})" for c in CLASSES)]
    write("rapidminer.csv", text([head, *rows(NAMES, NAMES, *P.T)], ";"))
    write("matlab_writetable.csv", text([["y", "p1", "p2", "p3"], *rows(LABEL + 1, *P.T)]))


def of_language_models() -> None:
    """Log-probabilities of tokens: the rows are the tokens, in four documents."""
    logs = np.log(P[np.arange(ROWS), LABEL]).tolist()
    documents = [range(k, k + 6) for k in range(0, ROWS, 6)]
    lines = []
    for d, part in enumerate(documents):
        tokens = [{"token": f"t{k}", "logprob": logs[k]} for k in part]
        lines.append({"id": f"doc{d}", "choices": [{"index": 0}], "logprobs": {"content": tokens}})
    write("openai_chat.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    flat = [{"doc": f"doc{d}", "token_logprobs": [logs[k] for k in part]} for d, part in enumerate(documents)]
    write("vllm_prompt_logprobs.jsonl.gz", gzip.compress("".join(json.dumps(x) + "\n" for x in flat).encode(), mtime=1))


def compressed() -> None:
    content = (FOLDER / "duckdb_pipe.csv").read_bytes()
    write("bzip2.csv.bz2", bz2.compress(content))
    write("xz.csv.xz", lzma.compress(content))
    with pa.CompressedOutputStream(str(FOLDER / "zstd.csv.zst"), "zstd") as stream:
        stream.write(content)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for make in (of_pandas, of_polars_and_arrow, of_numpy, of_r, of_excel, of_kaggle, of_spark):
        make()
    of_machine_learning_tools()
    of_language_models()
    compressed()


if __name__ == "__main__":
    main()
