"""Memory of each of 64 devices that train a 7B model under FSDP2: counted by torch's own tracker, beside what
`hftk plan` says.

    python benchmarks/fsdp_memory.py

No weight is made and no device is needed: the 64 processes are a fake group, of which this one is the first,
and tensors are without values. One step of Llama 2 7B (batch of one row of 4,096 tokens, bf16 with float32
shards, AdamW) is done as :mod:`hftk.training.trainer` does it. Writes results/fsdp_memory.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import hftk
from hftk.config import ModelConfig, TrainConfig
from hftk.models.layers import layer_classes
from hftk.planning import Setup, plan

RESULT = Path(__file__).resolve().parent.parent / "results" / "fsdp_memory.json"
DEVICES, ROWS, TOKENS = 64, 1, 4096
LLAMA = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


def main() -> None:
    from hftk.launch.environment import environment

    cases = {}
    for name, checkpointing in (("whole activations", False), ("gradient checkpointing", True)):
        counted, planned = count(checkpointing), planned_memory(checkpointing)
        total = sum(planned.values())
        cases[name] = {
            "counted_bytes": counted,
            "planned_bytes": total,
            "ratio": round(total / counted["total"], 4),
            "plan": planned,
        }
        print(json.dumps({name: cases[name]}, indent=1), flush=True)
    found = {
        "command": "python benchmarks/fsdp_memory.py",
        "devices": DEVICES,
        "rows": ROWS,
        "tokens": TOKENS,
        "model": LLAMA,
        "cases": cases,
        **environment(),
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def config_of(checkpointing: bool) -> Any:
    return hftk.CausalLMConfig(
        model=ModelConfig(size="tiny", architecture="llama", config=LLAMA, vocab_size=LLAMA["vocab_size"]),
        train=TrainConfig(
            per_device_batch_size=ROWS,
            global_batch_size=DEVICES * ROWS,
            max_length=TOKENS,
            max_steps=1,
            precision="bf16",
            gradient_checkpointing=checkpointing,
        ),
    )


def planned_memory(checkpointing: bool) -> dict[str, int]:
    """Bytes by kind, as `hftk plan --devices 64 --device a100-80gb --sharding fsdp` has them."""
    config = config_of(checkpointing)
    made = plan(
        config,
        hftk.CausalLM(config),
        Setup(devices=DEVICES, device="a100-80gb", sharding="fsdp"),
        precision="bf16",
    )
    return {kind: int(size) for kind, size in made.memory.items()}


def count(checkpointing: bool, devices: int = DEVICES) -> dict[str, int]:
    """Most bytes that one device holds in a step, in all and of each of torch's kinds at that moment."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=devices, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (devices,))  # outside of the fake mode
        with FakeTensorMode():
            task, model = sharded_model(checkpointing, mesh)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
            batch = {name: torch.zeros((ROWS, TOKENS), dtype=torch.long) for name in ("input_ids", "labels")}
            tracker = FSDPMemTracker(model, optimizer)
            tracker.track_inputs(tuple(batch.values()))
            with tracker:
                for _ in range(2):  # the optimizer's state is made in the first step
                    with torch.autocast("cpu", torch.bfloat16):
                        total, items = task.loss(model, batch)["tokens"]
                    (total / items).backward()
                    optimizer.step()
                    optimizer.zero_grad()
        peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    finally:
        torch.distributed.destroy_process_group()
    kinds = {str(getattr(kind, "value", kind)).lower(): int(size) for kind, size in peak.items()}
    return {"total": kinds.pop("total"), **{kind: size for kind, size in kinds.items() if size}}


def sharded_model(checkpointing: bool, mesh: Any) -> tuple[Any, Any]:
    """The task, and the model cut as accelerate cuts it: layers, embeddings, last norm with the head, and the
    rest."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers import AutoConfig, AutoModelForCausalLM

    task = hftk.CausalLM(config_of(checkpointing))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA), dtype=torch.float32)
    model.config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    settings: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    layers = layer_classes(model)
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, **settings)
    fully_shard(model.model.embed_tokens, **settings)
    fully_shard([model.model.norm, model.lm_head], **settings, reshard_after_forward=False)
    return task, fully_shard(model, **settings)


if __name__ == "__main__":
    main()
