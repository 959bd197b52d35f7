"""Section 7, "Output embedding": the teacher's logits of a hidden state, as the page has them."""

import numpy as np

from tests.kit.reader_from_spec.archive import read_archive
from tests.kit.reader_from_spec.arrays import Stored, check_ratio
from tests.kit.reader_from_spec.description import read_description
from tests.kit.reader_from_spec.json_text import canonical, parse_canonical, sha256
from tests.kit.reader_from_spec.refusing import must, ordinary

TYPES = {"bf16": "<u2", "f16": "<f2", "f32": "<f4"}


def read_logits(path):
    """A function of states (n, D) that makes logits (n, V), in float64."""
    content, _, _ = read_description(path)
    data = ordinary(path / "lm_head.zarr.zip")
    if (path / "DONE").exists():
        sealed = parse_canonical(ordinary(path / "DONE"), "DONE")["sha256"]
        must(sealed["lm_head.zarr.zip"] == sha256(data), "DONE seals the output embedding")
    members, _ = read_archive(data)
    raw = members["zarr.json"]
    about = parse_canonical(raw, "the group")["attributes"]["logitstore"]["lm_head"]
    must(set(about) == {"dtype", "bias", "steps"}, "fields of the output embedding")
    must(about["dtype"] in TYPES and about["bias"] in (True, False), "kind of weights")
    steps = about["steps"]
    must(set(steps) <= {"factor", "divisor", "cap"} and all(steps.values()), "steps")
    wanted = {"version": 1, "content_sha256": sha256(canonical(content)), "lm_head": about}
    group = {"attributes": {"logitstore": wanted}, "node_type": "group", "zarr_format": 3}
    must(raw == canonical(group), "the group of the output embedding")
    arrays = read_arrays(members, content, about)
    weight, bias = arrays["weight"], arrays.get("bias", 0)
    if about["dtype"] == "bf16":
        weight = (weight.astype(np.uint32) << 16).view(np.float32)
    must(np.isfinite(weight).all() and np.isfinite(bias).all(), "numbers of the output embedding")

    def logits(states):
        found = states.astype(np.float64) @ weight.astype(np.float64).T + bias
        found = found * steps.get("factor", 1) / steps.get("divisor", 1)
        cap = steps.get("cap")
        return found if cap is None else cap * np.tanh(found / cap)

    return logits


def read_arrays(members, content, about):
    rows, width = content["teacher"]["vocab_size"], content["capture"]["hidden"]["width"]
    dtype = np.dtype(TYPES[about["dtype"]])
    size = rows * width * dtype.itemsize
    must(size <= 2**32 - 2**26, "weights are not too large")
    found = {"weight": (dtype, (rows, width), max(1, 2**20 // (width * dtype.itemsize)))}
    if about["bias"]:
        found["bias"] = ("<f4", (rows,), 65_536)
    stored = {
        name: Stored(members, name, ("rows", kind, shape, chunk), {"name": "portable"})
        for name, (kind, shape, chunk) in found.items()
    }
    known = {"zarr.json"}.union(*(one.members for one in stored.values()))
    must(set(members) == known, "no other member")
    for each in stored.values():
        check_ratio(*each.cost(0, rows))
    return {name: one.decode() for name, one in stored.items()}
