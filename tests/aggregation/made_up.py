"""A realistic synthetic `results/`: correlated item scores, diverged, missing and stale runs, DyLoRA's ranks."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.core import records
from pipeline.core.settings import digest
from tests.aggregation.made_up_insight import insight, sites, weight_bytes

STATES = ["trained", "merged-original", "requantized-dequantized"]
RULES = {
    "gsm8k-demo": {"strict": ("%", "higher", "mean"), "flexible": ("%", "higher", "mean")},
    "gsm8k-base-demo": {"strict": ("%", "higher", "mean"), "flexible": ("%", "higher", "mean")},
    "ppl-demo": {"ppl": ("ppl", "lower", "exp-mean")},
    "gsm8k-demo-dev": {"strict": ("%", "higher", "mean"), "flexible": ("%", "higher", "mean")},
    "rouge-demo": dict.fromkeys(("rougeL", "rouge1", "rouge2", "rougeLsum"), ("F1 x 100", "higher", "mean")),
}
TASKS = [
    ("gsm8k-demo", "gsm8k-0shot-demo-v1", "target", 500),
    ("gsm8k-base-demo", "gsm8k-own-0shot-demo-v1", "retention", 500),
    ("ppl-demo", "ppl-256-demo-v1", "other", 40),
    ("rouge-demo", "rouge-demo-v1", "other", 200),
]
ADAPTERS = {
    "lora": ("LoRA", "rank", [2, 8], 512),
    "dylora": ("DyLoRA", "max_rank", [8], 512),
    "oft": ("OFTv2", "block_size", [8, 16], 500),
    "adalora": ("AdaLoRA", "rank", [2, 8], 520),
}
CODE, UPSTREAM = "code:11aa22bb", "upstream:33cc44dd"


@dataclass
class Plan:
    """What to make up, and what to break; run names are such as `tiny-none-lora-rank-2-s0`."""

    quantizations: list[str] = field(default_factory=lambda: ["none", "nf4-double"])
    adapters: dict = field(default_factory=lambda: ADAPTERS)
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    tasks: list[tuple[str, str, str, int]] = field(default_factory=lambda: TASKS)
    learning_rates: list[float] = field(default_factory=lambda: [2e-3])
    diverged: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    stale: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    report: dict = field(default_factory=dict)
    price_per_hour: float | None = None


class Maker:
    """Writes one synthetic sweep into a results folder."""

    def __init__(self, results: Path, plan: Plan, name: str = "demo"):
        self.results, self.plan, self.name = results, plan, name
        self.rng = np.random.default_rng(7)
        self.difficulty = {task: self.rng.normal(0, 1.2, n) for task, _, _, n in plan.tasks}

    def make(self) -> Path:
        bases = [self.base(quantization) for quantization in self.plan.quantizations]
        runs = [
            self.run(adapter, size, quantization, seed, rate)
            for adapter, (_, _, sizes, _) in self.plan.adapters.items()
            for size in sizes
            for quantization in self.plan.quantizations
            for rate in self.plan.learning_rates
            for seed in self.plan.seeds
        ]
        tasks = [
            {"name": t, "generation_id": g, "role": r, "scoring": list(RULES[t])} for t, g, r, _ in self.plan.tasks
        ]
        result = {
            "name": self.name, "overrides": [], "axes": [], "tasks": tasks, "states": STATES, "runs": runs,
            "bases": bases, "data": {task: self.data(task) for task, *_ in self.plan.tasks},
            "report": {"_target_": "pipeline.aggregation.settings.Report"} | self.plan.report,
            "price_per_hour": self.plan.price_per_hour,
        }  # fmt: skip
        path = self.results / "tables" / self.name / "sweep.json"
        records.write(path, stage="plan", settings={"sweep": self.name}, result=result, about={})
        return path

    def record(
        self, path: str, stage: str, result: dict, *, status: str = "ok", stale: bool = False, **more: dict
    ) -> dict:
        settings = {"stage": stage, "path": path} | more.get("settings", {})
        about = {
            "code": CODE, "upstream": UPSTREAM, "time": "2026-11-21T20:00:00Z", "seconds": 7.25, "host": "node-7",
            "machine": "Linux x86_64", "commit": "c0ffee123456", "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "device": "CPU x86_64", "training_seconds": 5.0,
        } | more.get("about", {})  # fmt: skip
        written = settings | ({"learning_rate": 9} if stale else {})
        records.write(self.results / path, stage=stage, settings=written, result=result, about=about, status=status)
        return {"path": path, "settings": digest(settings, 16), "code": CODE, "upstream": UPSTREAM}

    def data(self, task: str) -> dict:
        n = next(n for t, _, _, n in self.plan.tasks if t == task)
        folder = self.results / "data" / f"{task}-00000000"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "id": f"{task}-{i}",
                "question": f"Tom has {i} apples & gets {i} + 2 <more>.",
                "answer": f"#### {2 * i + 2}",
            }
            for i in range(n)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        records.write_atomic(folder / "test.jsonl", text)
        split = {"file": "test.jsonl", "rows": n, "sha256": records.file_sha256(folder / "test.jsonl")}
        return self.record(
            f"data/{task}-00000000/manifest.json", "prepare_data",
            {"name": task, "splits": {"test": split}, "license": "Apache-2.0", "source": "generated",
             "overlap": {"test": {"equal": [], "near": []}}}, settings={"data": {"seed": 0}},
        )  # fmt: skip

    def base(self, quantization: str) -> dict:
        name = f"tiny-{quantization}"
        folder = f"bases/{name}-00000000"
        levels = {task: {"base": -5.0 if role == "target" else 3.0} for task, _, role, _ in self.plan.tasks}
        tasks, scores = self.scored(folder, levels, {})
        quantized = self.record(
            f"{folder}/manifest.json",
            "quantize_base",
            {
                "format": quantization,
                "bits_per_parameter": 4.126953125,
                "layers": [
                    {
                        "site": f"{layer}.{role}",
                        "role": role,
                        "layer": layer,
                        "relative_error": 0.09 + 0.01 * layer,
                        "max_error": 0.6,
                        "max_weight": 4.0,
                        "kurtosis": 3.0,
                        "outlier_error": 0.004,
                    }
                    for layer in (0, 1)
                    for role in ("q", "down")
                ],
            },
        )
        return {
            "folder": folder, "name": name, "model": "tiny", "quantization": quantization, "kept": [],
            "records": {"quantize_base": quantized, "score": scores}, "tasks": tasks,
        }  # fmt: skip

    def run(self, adapter: str, size: int, quantization: str, seed: int, rate: float) -> dict:
        label, axis, _, per_unit = self.plan.adapters[adapter]
        point = f"{axis.removeprefix('max_')}-{size}" + (f"-lr{rate}" if len(self.plan.learning_rates) > 1 else "")
        name = f"tiny-{quantization}-{adapter}-{point}-s{seed}"
        folder = f"runs/{name}-00000000"
        settings = {
            "model": {"name": "tiny"}, "adapter": {"_target_": f"pipeline.adapters.{adapter}", axis: size},
            "training": {"learning_rate": rate, "steps": 150}, "quantization": {"name": quantization}, "seed": seed,
        }  # fmt: skip
        ranks = [rank for rank in (1, 2, 4, 8) if rank <= size] if adapter == "dylora" else [None]
        labels = [f"{state}@r{rank}" if rank else state for state in STATES for rank in ranks]
        skipped = {}
        if quantization == "none":
            skipped = {x: "the base is not quantized" for x in labels if x.startswith("requantized")}
            labels = [x for x in labels if x not in skipped]
        status = "diverged" if name in self.plan.diverged else "ok"
        failed = {"reason": "the loss is not finite", "step": 12} if status == "diverged" else None
        train = self.trained(size * per_unit, size, ranks) | {"insight": insight(adapter, size)}
        if failed:
            train = failed | {
                "curve": [*train["curve"][:3], train["curve"][3] | {"loss": 1e30}, {"step": 20, "loss": None}]
            }
        records_of = {
            "finetune": self.record(
                f"{folder}/train.json", "finetune", train, status=status, stale=name in self.plan.stale
            ),
            "merge": self.record(
                f"{folder}/merge.json", "merge", failed or self.merged(labels, skipped), status=status
            ),
        }  # fmt: skip
        levels = {task: self.abilities(labels, size, quantization, role) for task, _, role, _ in self.plan.tasks}
        tasks, records_of["score"] = self.scored(folder, levels, skipped, failed)
        if name in self.plan.missing:
            (self.results / folder / "train.json").unlink()
        return {
            "folder": folder, "name": name, "model": "tiny", "quantization": quantization, "adapter": adapter,
            "adapter_label": label, "size": [axis, size], "seed": seed, "settings": settings,
            "kept": ["finetune"] if name in self.plan.kept else [], "records": records_of, "tasks": tasks,
        }  # fmt: skip

    def abilities(self, labels: list[str], size: int, quantization: str, role: str) -> dict[str, float]:
        run_luck = self.rng.normal(0, 0.15)
        found = {}
        for label in labels:
            rank = int(label.partition("@r")[2] or size)
            gain = 1.4 * math.log2(rank) - 0.2
            ability = gain if role == "target" else 2.4 - 0.35 * math.log2(rank)
            lost = 0.5 * ("requantized" in label) + 0.1 * (quantization != "none")
            found[label] = ability - lost + run_luck
        return found

    def trained(self, parameters: int, size: int, ranks: list) -> dict:
        steps = range(0, 150, 5)
        curve = [
            {"step": s, "loss": 0.1 + 2.5 * math.exp(-s / (20 + 40 / size)) + abs(self.rng.normal(0, 0.02)),
             "learning_rate": 2e-3, "grad_norm": 1.0, "labelled_tokens": 640}
            for s in steps
        ]  # fmt: skip
        at = {str(rank): parameters * rank // size for rank in ranks if rank}
        return {
            "steps": 150, "trainable_parameters": parameters, "total_parameters": 447_000, "adapter_files": {},
            "adapter_bytes": parameters * 4, "points": [r for r in ranks if r], "parameters_at": at, "curve": curve,
            "final_loss": 0.1, "dev_loss": 0.12, "truncated_rows": 0, "insight": {},
        }  # fmt: skip

    def merged(self, labels: list[str], skipped: dict) -> dict:
        states = {
            label: {"digest": digest(label), "relative_update": None if label.endswith("@r1") else 0.08,
                    "survival": None if label.endswith("@r1") else 0.62 if "requantized" in label else 1.0,
                    "error": 0.01, "sites": sites(quantized=not skipped)}
            for label in labels if not label.startswith("trained")
        }  # fmt: skip
        return {"states": states, "skipped": skipped}

    def scored(self, folder: str, levels: dict, skipped: dict, failed: dict | None = None) -> tuple[dict, dict]:
        """Return what is expected of each task's evaluation, and of the scores of all."""
        made = {task: self.asked(folder, task, ability, skipped, failed) for task, ability in levels.items()}
        scores = {"tasks": {task: score for task, (_, score) in made.items()}}
        expected = self.record(f"{folder}/score/tasks-0badf00d.json", "score", scores)
        return {task: evaluated for task, (evaluated, _) in made.items()}, expected

    def asked(self, folder: str, task: str, ability: dict, skipped: dict, failed: dict | None) -> tuple[dict, dict]:
        generation = next(g for t, g, _, _ in self.plan.tasks if t == task)
        status = "diverged" if failed else "ok"
        stem = f"{folder}/evaluate/{task}-0badf00d"
        likelihood = task == "ppl-demo"
        n = len(self.difficulty[task])
        items = [f"{task}-{i}" for i in range(n)]
        rules, replies = self.rules(task, ability), []
        for label in ability:
            first = next(iter(rules.values()))["states"][label]["per_item"]
            replies += [
                {"state": label, "item": item, "reply": f"{i} + 2 = {i + 2}\n#### {i + 2 if right else i}",
                 "tokens": 20, "stop": "eos"}
                for i, (item, right) in enumerate(zip(items, first, strict=True))
            ]  # fmt: skip
        if not likelihood:
            text = "".join(json.dumps(reply) + "\n" for reply in replies).encode()
            records.write_atomic(self.results / f"{stem}.jsonl", text)
        asked = {"id": generation, "split": "dev" if task.endswith("-dev") else "test", "max_new_tokens": 48}
        held = {label: {"weight_bytes": weight_bytes(folder, label)} for label in ability}
        evaluated = failed or {
            "task": task, "generation": asked, "states": held,
            "kind": "likelihood" if likelihood else "replies", "n": n, "skipped": skipped,
            "items_sha256": None if likelihood else records.file_sha256(self.results / f"{stem}.jsonl"),
        }  # fmt: skip
        scored = {"status": status, "generation_id": generation, "items": [] if failed else items}
        scored |= {"rules": {} if failed else rules} | (failed or {})
        made = self.record(
            f"{stem}.json",
            "evaluate",
            evaluated,
            status=status,
            settings={"task": {"name": task, "generation": asked}, "evaluation": {"precision": "fp32"}},
            about={"costs": {label: {"seconds": 0.002 * n} for label in ability}},
        )
        return made, scored

    def rules(self, task: str, ability: dict) -> dict:
        found = {}
        for rule, (unit, better, aggregate) in RULES[task].items():
            states = {}
            for label, level in ability.items():
                chance = 1 / (1 + np.exp(self.difficulty[task] - level))
                if aggregate == "exp-mean":
                    per_item = 1.6 - 0.3 * chance + self.rng.normal(0, 0.01, len(chance))
                elif unit == "%":
                    per_item = 100.0 * (self.rng.random(len(chance)) < chance)
                else:
                    per_item = 100 * np.clip(chance + self.rng.normal(0, 0.1, len(chance)), 0, 1)
                mean = float(np.mean(per_item))
                score = math.exp(mean) if aggregate == "exp-mean" else mean
                states[label] = {"score": score, "n": len(per_item), "per_item": per_item.tolist(),
                                 "failures": 3, "truncated": 1}  # fmt: skip
            found[rule] = {"unit": unit, "better": better, "aggregate": aggregate, "states": states}
        return found


SMALL = {
    "adapters": {name: ADAPTERS[name] for name in ("lora", "dylora")},
    "quantizations": ["nf4-double"],
    "tasks": [(task, protocol, role, min(n, 60)) for task, protocol, role, n in TASKS[:3]],
}
"""Fields of a plan that is made in a blink."""


def rewrite(path: Path, **changes):
    """Write a record again, whole and well, with other contents."""
    old = {key: value for key, value in vars(records.read(path)).items() if key != "version"}
    records.write(**(old | changes))
