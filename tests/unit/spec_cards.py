"""Cards of all methods the rules speak of, built here or not: what the recommender is tested on.

Each stands on weights of its own (titled by its name), so that a test can say which are on the machine.
"""

from __future__ import annotations

from typing import Any

from anomalens.types import Card, Reported, Weights


def made(name: str, family: str, settings: str, scope: str, normals: tuple[int, int], fit: str, predict: str, gpu: str,
         stored: float, pose: str, trains: str, **more: Any) -> Card:  # fmt: skip
    """One row of the tables; settings are letters: F full, K few, Z zero-shot, B batched, S semi-supervised, G generation."""
    full = {"F": "full-shot", "K": "few-shot", "Z": "zero-shot", "B": "batched-zero-shot", "S": "semi-supervised",
            "G": "generation"}  # fmt: skip
    base: dict[str, Any] = {
        "title": name.upper(), "paper": "https://example.org", "year": 2024, "venue": "", "summary": f"What {name} does.",
        "repo": "", "code_licence": "no-code", "fidelity": "parity", "family": family,
        "settings": tuple(full[letter] for letter in settings), "scope": scope, "normals": normals, "abnormals": "none",
        "auxiliary": (), "text": "none", "transductive": False, "needs": ("image",), "gives": ("score", "map"),
        "levels": ("structural",), "focus": "any", "backbone": "as published", "trains": trains, "fit_cost": fit,
        "predict_cost": predict, "gpu": gpu, "stored_mb": stored, "extras": (),
        "weights": (Weights(name, (f"{name}.safetensors",), "https://example.org", "MIT", True),),
        "pose": pose, "external": (), "determinism": "seeded", "differs": "nothing", "pitfalls": (),
    }  # fmt: skip
    return Card(**(base | more))


BOTH = ("structural", "semantic")
LLM = ("local-llm", "remote-llm")
ADA = (Reported("mvtec", "zero-shot", "image_auroc", 89.2, "paper"),)
CORE = (Reported("mvtec", "full-shot", "image_auroc", 99.2, "readme", "last"),)

CARDS: dict[str, Card] = {
    # The group's own methods.
    "adaclip": made("adaclip", "vision-language", "Z", "open", (0, 0), "F0", "P2", "yes", 42.7, "free", "auxiliary",
                    auxiliary=("annotated-ad",), text="class-name", determinism="exact", reported=ADA),
    "pnpt": made("pnpt", "reconstruction", "F", "multi", (20, 200), "F4", "P1", "fit", 60, "small", "gradient",
                 levels=BOTH, fidelity="reading"),
    "grnr": made("grnr", "self-regression", "Z", "open", (0, 0), "F0", "P2", "no", 0, "free", "no", focus="texture",
                 determinism="exact", fidelity="port"),
    "logicode": made("logicode", "program", "ZK", "single", (0, 20), "F2", "P1", "no", 1, "free", "statistics",
                     abnormals="optional", text="rules", gives=("score", "boxes", "text", "program"),
                     levels=("semantic",), focus="object", external=LLM, fidelity="reading"),
    "afrd": made("afrd", "distillation", "F", "single", (50, 1000), "F4", "P1", "fit", 340, "small", "gradient",
                 needs=("lights",), fidelity="port"),
    "cut": made("cut", "generator", "G", "open", (1, 1), "F0", "P4", "yes", 0, "free", "no", text="phrases",
                gives=("images",), levels=BOTH, external=("diffusion",), extras=("diffusion",)),
    "vlad": made("vlad", "vision-language", "ZK", "open", (0, 1), "F3", "P2", "yes", 50, "free", "auxiliary",
                 auxiliary=("generated",), text="phrases", fidelity="reading"),
    "customizable-vlm": made("customizable-vlm", "language-model", "ZK", "open", (0, 1), "F0", "P4", "no", 0, "free",
                             "no", abnormals="optional", text="dialogue", needs=("image", "points", "video", "series"),
                             gives=("score", "text"), levels=BOTH, external=LLM, determinism="external",
                             extras=("llm",), fidelity="port"),
    "dfd": made("dfd", "synthesis", "KF", "single", (1, 4), "F3", "P1", "fit", 180, "free", "gradient",
                auxiliary=("textures",), extras=("torch",)),
    # Those of RAD.
    "cflow": made("cflow", "flow", "F", "single", (20, 200), "F4", "P1", "fit", 327, "small", "gradient"),
    "pyramidflow": made("pyramidflow", "flow", "F", "single", (20, 200), "F3", "P1", "fit", 113, "small", "gradient",
                        focus="texture"),
    "rd": made("rd", "distillation", "F", "single", (20, 200), "F3", "P1", "fit", 335, "small", "gradient", levels=BOTH),
    "rdpp": made("rdpp", "distillation", "F", "single", (20, 200), "F4", "P1", "fit", 400, "small", "gradient",
                 levels=BOTH),
    "dsr": made("dsr", "synthesis", "F", "single", (10, 200), "F4", "P1", "fit", 160, "small", "gradient",
                auxiliary=("vq-model",)),
    "cdo": made("cdo", "distillation", "FS", "single", (20, 200), "F3", "P1", "fit", 120, "small", "gradient",
                abnormals="optional"),
    "patchcore": made("patchcore", "memory", "FK", "single", (1, 50), "F1", "P1", "no", 68, "free", "statistics",
                      reported=CORE),
    "gcpf": made("gcpf", "gaussian", "F", "single", (20, 100), "F2", "P1", "no", 55, "free", "statistics"),
    "winclip": made("winclip", "vision-language", "ZK", "open", (0, 4), "F0", "P2", "yes", 1, "free", "no",
                    text="class-name", extras=("clip",), determinism="exact"),
    "april-gan": made("april-gan", "vision-language", "ZK", "open", (0, 4), "F0", "P2", "yes", 12, "free", "auxiliary",
                      auxiliary=("annotated-ad",), text="class-name", determinism="exact"),
    "saa": made("saa", "segmenter", "Z", "open", (0, 0), "F0", "P4", "yes", 0, "free", "no", text="phrases",
                transductive=True, focus="object", external=("detector+sam",), determinism="exact"),
    # Other baselines.
    "padim": made("padim", "gaussian", "FK", "single", (2, 100), "F1", "P0", "no", 125, "aligned", "statistics"),
    "simplenet": made("simplenet", "synthesis", "F", "single", (20, 200), "F3", "P0", "fit", 16, "small", "gradient"),
    "draem": made("draem", "synthesis", "F", "single", (10, 200), "F4", "P1", "fit", 390, "small", "gradient",
                  auxiliary=("textures",)),
    "uniad": made("uniad", "reconstruction", "F", "multi", (20, 200), "F4", "P1", "fit", 30, "small", "gradient",
                  levels=BOTH),
    "anomalydino": made("anomalydino", "memory", "KFB", "single", (1, 1), "F1", "P1", "no", 1.6, "free", "statistics"),
    "dinomaly": made("dinomaly", "reconstruction", "F", "multi", (20, 200), "F3", "P1", "fit", 246, "small", "gradient",
                     levels=BOTH),
    "musc": made("musc", "mutual", "B", "single", (0, 0), "F0", "P3", "yes", 0, "free", "no", transductive=True,
                 determinism="exact"),
}  # fmt: skip
