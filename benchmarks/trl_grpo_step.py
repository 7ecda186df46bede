"""Seconds of a step of TRL's GRPO trainer: the peer of `benchmarks.grpo_step`, which starts it.

Run: python -m benchmarks.grpo_step --peer-python=.venv-trl/bin/python

It is a program of its own because TRL needs torch and transformers, which nothing here depends
on; it imports neither jax nor deepseek_jax. It reads a JSON request from its first argument (sizes,
prompts, device) and writes what it measured to its second. A Qwen3 decoder, or Qwen3-MoE, of
random weights stands for the policy. Every step is one update on freshly drawn answers, with a KL
to the reference model, as in `grpo_step`; the rewards follow the same rule. With one update a batch
neither takes a second pass for the old log-probabilities. One thing is left out, in TRL's favour:
its experts have no balancing loss.
"""

import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import tokenizers
import torch
import transformers
import trl

_SPECIAL = ("<pad>", "<bos>", "<eos>")
_CHARACTERS = "0123456789+="


def main() -> None:
    """Answers one request."""
    request_path, result_path = map(pathlib.Path, sys.argv[1:])
    result = measure(json.loads(request_path.read_text()))
    result_path.write_text(json.dumps(result))


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Trains for as many steps as asked and times them."""
    on_gpu = request["device"] == "gpu"
    if on_gpu:
        if not torch.cuda.is_available():
            raise RuntimeError("a GPU was asked for, and torch sees none")
        # TF32, the faster one; ours computes in true float32.
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    model = make_model(request)
    num_params = sum(parameter.numel() for parameter in model.parameters())
    clock, told = Clock(on_gpu), Told()
    num_rows = request["num_prompts"] * request["samples_per_prompt"]
    with tempfile.TemporaryDirectory() as folder:
        # The trainer opens its reference model from where the policy came from.
        tokenizer = make_tokenizer(request["vocab_size"])
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        settings = trl.GRPOConfig(
            output_dir=f"{folder}/run",
            use_cpu=not on_gpu,
            per_device_train_batch_size=num_rows,
            num_generations=request["samples_per_prompt"],
            max_completion_length=request["max_new_tokens"],
            max_steps=request["num_warmup"] + request["num_timed"],
            num_iterations=1,
            temperature=request["temperature"],
            learning_rate=request["learning_rate"],
            adam_beta2=request["beta2"],
            beta=request["kl_coefficient"],
            epsilon=request["clip"],
            loss_type="grpo",
            max_grad_norm=request["clip_norm"],
            bf16=False,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = trl.GRPOTrainer(
            model=folder,
            reward_funcs=told.reward,
            args=settings,
            train_dataset=datasets.Dataset.from_list(
                [{"prompt": _SPECIAL[1] + prompt} for prompt in request["prompts"]]
            ),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    seconds = clock.seconds()[-request["num_timed"] :]
    told.check()
    return {
        "step_seconds": sorted(seconds),
        "seconds_per_step": statistics.median(seconds),
        "rollouts_per_second": num_rows / statistics.median(seconds),
        "num_parameters": num_params,
        "mean_tokens_drawn": statistics.mean(told.mean_lengths[-request["num_timed"] :]),
        "made_with": {
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "dtype": str(next(trainer.model.parameters()).dtype),
            "num_threads": torch.get_num_threads(),
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


class Clock(transformers.TrainerCallback):
    """When training began and each step ended."""

    def __init__(self, on_gpu: bool) -> None:
        """Nothing is noted yet."""
        self._on_gpu = on_gpu
        self._times: list[float] = []

    def _note(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        self._times.append(time.perf_counter())

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Notes the start."""
        self._note()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Notes a step: from the end of the one before it, so drawing and data are in it."""
        self._note()

    def seconds(self) -> list[float]:
        """Of each step."""
        return [end - start for start, end in zip(self._times, self._times[1:], strict=False)]


class Told:
    """The rewards, and what they say of the answers."""

    def __init__(self) -> None:
        """No answers yet."""
        self.mean_lengths: list[float] = []
        self._varied: list[bool] = []

    def reward(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        """1 for an answer whose ids have an even sum, else 0."""
        rewards = [float(sum(ids) % 2 == 0) for ids in completion_ids]
        self.mean_lengths.append(statistics.mean(map(len, completion_ids)))
        self._varied.append(len(set(rewards)) > 1)
        return rewards

    def check(self) -> None:
        """Raises if some step had nothing to learn from."""
        if not all(self._varied):
            raise RuntimeError("all answers of some step earned the same")


def make_model(request: dict[str, Any]) -> Any:
    """A decoder of the sizes asked for."""
    shared = dict(
        vocab_size=request["vocab_size"],
        hidden_size=request["model_dim"],
        num_hidden_layers=request["num_layers"],
        num_attention_heads=request["num_heads"],
        num_key_value_heads=request["num_kv_heads"],
        head_dim=request["head_dim"],
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    if request["num_experts"] == 1:
        return transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(**shared, intermediate_size=request["hidden_dim"])
        )
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            **shared,
            moe_intermediate_size=request["hidden_dim"],
            num_experts=request["num_experts"],
            num_experts_per_tok=request["top_k"],
            norm_topk_prob=True,
            decoder_sparse_step=1,
        )
    )


def make_tokenizer(vocab_size: int) -> Any:
    """A character a token; entries that no text has fill the vocabulary."""
    words = [*_SPECIAL, *_CHARACTERS]
    words += [f"<{number}>" for number in range(len(words), vocab_size)]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: number for number, word in enumerate(words)}, unk_token=words[0]
        )
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=_SPECIAL[0],
        bos_token=_SPECIAL[1],
        eos_token=_SPECIAL[2],
        padding_side="left",
    )


if __name__ == "__main__":
    main()
