"""alignment_security.evaluation.threats."""

from __future__ import annotations

from alignment_security.attacks.autoattack import Budget
from alignment_security.attacks.libraries import FOOLBOX
from alignment_security.common.files import sha256_file
from alignment_security.evaluation.options import CLEAN_THREATS
from alignment_security.images.human_maps import map_source
from alignment_security.images.image_sets import ImageSet
from alignment_security.images.labels import read_multilabels
from alignment_security.models.heads import HEAD_TEMPERATURE
from alignment_security.records.metrics import HUMAN_CEILING

# ---- settings --------------------------------------------------------------------------------------------------


def threat_name(args) -> str:
    """The folder of the record: `clean`, `Linf`, `L2-fmn`, `corruptions-fog-3`, ..."""
    if args.threat == "corruptions":
        return f"corruptions-{args.corruption_type}-{args.corruption_severity}"
    if args.threat == "clean" or (args.threat == "Linf" and args.protocol == "autoattack"):
        return args.threat
    return f"{args.threat}-{args.protocol}"


def budget_of(args) -> Budget:
    return Budget(tuple(args.attacks), args.steps, args.targets, args.queries)


def attack_settings(args) -> dict:
    """What the attack spends: constant over the models of a folder, compared on resume and on merge."""
    if args.threat in CLEAN_THREATS:
        return {"attack": "none", "protocol": "clean"}
    common = {"protocol": args.protocol, "norm": args.threat, "seed": args.seed}
    if args.protocol == "autoattack":
        budget = budget_of(args)
        return common | {
            "attack": budget.name,
            "eps": sorted(set(args.eps)),
            "engine": args.engine,
            "ladder": "bisect" if args.bisect else "ascending",
            "attacks": budget.attacks,
            "steps": budget.steps,
            "targets": budget.targets,
            "queries": budget.queries,
        }
    if args.protocol in FOOLBOX:
        name, settings = FOOLBOX[args.protocol]
        return common | {
            "attack": f"foolbox {name} {args.steps} steps",
            **settings,
            "steps": args.steps,
            **({"pixels": "stretched to [0, 1]"} if args.protocol == "feng2025" else {}),
        }
    if args.protocol == "crossing":
        return common | {
            "attack": f"crossing {args.steps} steps",
            "steps": args.steps,
            **(
                {"head_gradient": f"log-sum-exp at {HEAD_TEMPERATURE} std"}
                if args.head == "animate"
                else {}
            ),
        }
    return common | {
        "attack": f"FMN {args.steps} steps",
        "steps": args.steps,
        "step_size": args.step_size,
        "final_step_size": args.final_step_size,
        "gamma": args.gamma,
    }


def run_settings(args, images: ImageSet) -> dict:
    return {
        **attack_settings(args),
        "precision": args.precision,
        "head": args.head,
        "image_set": images.name,
        "images": len(images),
        "list_sha256": images.list_sha256,
        "slice": args.slice,
        **images.facts,
        **({"contents_sha256": images.contents_sha256()} if images.name == "big12" else {}),
        **({"multilabel_sha256": sha256_file(args.multilabel)} if accepted_labels(args) else {}),
        **(
            {
                "human_map": map_source(images),
                "map_reduce": map_reduce(args),
                "human_ceiling": HUMAN_CEILING,
            }
            if has_alignment(args) and map_source(images)
            else {}
        ),
    }


def accepted_labels(args) -> dict[str, frozenset[int]]:
    """Classes that people accept for an image; of no use to attacks, nor to a head of two classes."""
    wanted = args.multilabel and args.threat in CLEAN_THREATS and args.head == "none"
    return read_multilabels(args.multilabel) if wanted else {}


def has_alignment(args) -> bool:
    return args.threat not in CLEAN_THREATS and args.protocol != "autoattack"


def map_reduce(args) -> str:
    """Perturbation -> map; the published norms come with the published map, |max over channels|."""
    return "feng2025" if args.protocol == "feng2025" else args.map_reduce
