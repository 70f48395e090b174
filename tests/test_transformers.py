"""Hugging Face models, made small from their configuration: losses, gradients, generation, Trainer, adapters."""

from __future__ import annotations

import copy

import pytest
import torch
from models import VOCABULARY, WIDTH, assert_close, assert_same_step, is_made, token_ids, trained
from torch.nn import functional as F

from xent.torch.deferred import DeferredLinear, DeferredLogits, defer_logits, restore_logits
from xent.torch.deferred import rules as deferred_operations

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "head_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ARCHITECTURES = {
    "Llama": ("LlamaConfig", SIZES),
    "Qwen3": ("Qwen3Config", SIZES),
    "Gemma2": ("Gemma2Config", {**SIZES, "final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8}),
    "GPT2": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0,
         "embd_pdrop": 0.0, "attn_pdrop": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "Mistral": ("MistralConfig", SIZES),
    "Mixtral": ("MixtralConfig", {**SIZES, "num_local_experts": 4, "output_router_logits": True}),
    "Granite": ("GraniteConfig", {**SIZES, "logits_scaling": 3.0}),
}  # fmt: skip
IDS = token_ids(2, 24)
LABELS = torch.where(token_ids(2, 24, seed=5) % 4 == 0, -100, IDS)


def build(name: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    config, sizes = ARCHITECTURES[name]
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**sizes)).to(dtype)


def without_making(model) -> torch.Tensor:
    """A step as the model computes its loss itself; with deferred logits it must not make them."""
    output = model(input_ids=IDS, labels=LABELS, num_items_in_batch=torch.tensor(41))
    assert type(output.logits) is not DeferredLogits or not is_made(output.logits)
    return output.loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_all_gradients_are_those_of_the_untouched_model(name, dtype, monkeypatch):
    calls = []
    original = deferred_operations.linear_cross_entropy
    monkeypatch.setattr(
        deferred_operations, "linear_cross_entropy", lambda *a, **k: calls.append(k) or original(*a, **k)
    )
    assert_same_step(build(name, dtype), without_making, None)
    assert len(calls) == 1
    assert (calls[0].get("softcap") is not None) == (name == "Gemma2")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generation_and_evaluation_are_those_of_the_untouched_model(name):
    model = build(name).eval()
    found = {}
    for change in (restore_logits, defer_logits):
        change(model)
        with torch.no_grad():
            logits = model(input_ids=IDS).logits
            tokens = model.generate(IDS[:, :5], max_new_tokens=4, do_sample=False)
            torch.manual_seed(1)
            sampled = model.generate(IDS[:, :5], max_new_tokens=4, do_sample=True, top_k=20, temperature=0.7)
        found[change] = (logits + 0, tokens, sampled)
    for one, other in zip(*found.values(), strict=True):
        assert torch.equal(one, other)


def test_gradient_checkpointing_of_the_model():
    model = build("Llama")
    model.train()
    model.gradient_checkpointing_enable()
    assert_same_step(model, without_making, None)


def under_autocast(model) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return without_making(model)


def test_autocast_of_the_model():
    assert_same_step(build("Llama"), under_autocast, None, unit=2.0**-7)


# ------------------------------------------------------------------------------------------------------------- Trainer


def run_trainer(model, folder, **arguments):
    """Two optimizer steps with gradient accumulation over batches of unequal numbers of tokens; the losses logged."""
    rows = [{"input_ids": row, "labels": row.clone()} for row in token_ids(8, 16, seed=9)]
    for number, row in enumerate(rows):
        row["labels"][: 2 * number] = -100
    settings = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2,
        learning_rate=1e-2, logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, seed=3,
        **arguments,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=rows, eval_dataset=rows[:4])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = trainer.evaluate()["eval_loss"]
    predicted = trainer.predict(rows[:4]).predictions
    return losses, found, predicted


def test_trainer_with_accumulation_gives_the_same_losses_and_weights(tmp_path):
    """The denominator is the number of tokens of all accumulated batches: Liger-Kernel #802, TRL #5890,
    transformers #35203."""
    plain, deferred = build("Llama"), defer_logits(build("Llama"))
    (wanted, wanted_eval, wanted_logits), (losses, found_eval, logits) = (
        run_trainer(model, tmp_path) for model in (plain, deferred)
    )
    assert isinstance(deferred.lm_head, DeferredLinear)
    assert losses == pytest.approx(wanted, abs=2e-4)  # Trainer rounds what it logs to four digits
    assert found_eval == pytest.approx(wanted_eval, rel=1e-5)
    # AdamW divides a gradient by its size, so that a rounding error near 0 can be a step; all others agree.
    for one, other in zip(deferred.parameters(), plain.parameters(), strict=True):
        assert ((one - other).abs() > 1e-4).float().mean() < 0.01
    assert logits.shape == wanted_logits.shape == (4, 16, VOCABULARY)


def test_trainer_with_its_own_label_smoothing_makes_the_logits_and_is_right(tmp_path):
    wanted, losses = (
        run_trainer(model, tmp_path, label_smoothing_factor=0.1)[0]
        for model in (build("GPT2"), defer_logits(build("GPT2")))
    )
    assert losses == pytest.approx(wanted, abs=2e-4)


# ------------------------------------------------------------------------------------------------------------ adapters

ADAPTERS = {
    "LoRA on the head": {"target_modules": ["lm_head", "q_proj"]},
    "LoRA on the head with dropout": {"target_modules": ["lm_head"], "lora_dropout": 0.4},
    "LoRA elsewhere, head trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "LoRA elsewhere, head frozen": {"target_modules": ["q_proj"]},
}


def adapted(name: str, dtype: torch.dtype = torch.float32, **more):
    config = peft.LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, **ADAPTERS[name], **more)
    return peft.get_peft_model(build("Llama", dtype), config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_on_the_head_are_part_of_the_loss(name, dtype):
    model = adapted(name, dtype)
    plain = trained(model, without_making)
    # What the comparison is against: logits of the whole head, in float64.
    reference = copy.deepcopy(model).double()
    wanted = trained(reference, without_making) if dtype == torch.float32 else None
    defer_logits(model)
    found = trained(model, without_making)
    assert any("lora" in key or "modules_to_save" in key for key in found)
    if wanted is not None:
        assert_close(found, plain, wanted, torch.finfo(dtype).eps)
    else:
        for key, value in plain.items():
            # Both round the logits and their gradient to 8 bits, each in its own place.
            assert (found[key] - value).norm() <= 4 * torch.finfo(dtype).eps * value.norm(), key


def test_an_adapter_that_is_no_sum_of_products_makes_the_logits():
    model = peft.get_peft_model(
        build("Llama"), peft.LoraConfig(r=4, init_lora_weights=False, use_dora=True, target_modules=["lm_head"])
    )
    plain = trained(model, without_making)
    found = trained(defer_logits(model), without_making)
    for key, value in plain.items():
        assert (found[key] - value).norm() <= 2.0**-22 * value.norm(), key


def test_adapters_switched_off_merged_or_put_on_later_are_right():
    model = defer_logits(adapted("LoRA on the head").eval())
    with torch.no_grad():
        with model.disable_adapter():
            off = model(input_ids=IDS).logits
            assert type(off) is DeferredLogits
            base = model.get_output_embeddings().base_layer
            hidden = model.base_model.model.model(input_ids=IDS).last_hidden_state
            assert torch.equal(off + 0, F.linear(hidden, base.weight))
        on = model(input_ids=IDS).logits + 0
        assert not torch.equal(on, off + 0)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=IDS).logits + 0, on, rtol=1e-4, atol=1e-5)
    late = defer_logits(build("Llama"))
    early = copy.deepcopy(late)
    config = peft.LoraConfig(r=4, target_modules=["lm_head"])
    found = trained(peft.get_peft_model(late, config), without_making)
    wanted = trained(peft.get_peft_model(restore_logits(early), config), without_making)
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found["loss"], wanted["loss"], rtol=1e-6, atol=0)
