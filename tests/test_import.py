"""What `import hear_pretrainedsed` and loading ask for: torch, numpy, soundfile, and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Every module that is neither of Python itself nor needed by these four is not to be found.
BLOCKED = """
import importlib.metadata as metadata, json, re, sys, time
import torch, numpy, soundfile
before = set(sys.modules)
top = metadata.packages_distributions()
allowed, todo = set(), ["torch", "numpy", "soundfile"]
while todo:
    name = todo.pop()
    if name not in allowed:
        allowed.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        needs = [need for need in needs if "extra ==" not in need]
        todo += [re.match(r"[\\w.-]+", need)[0].lower().replace("_", "-") for need in needs]
asked = []

class Without:
    # A finder to which the other packages are not installed.

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        owners = top.get(first) if first != "hear_pretrainedsed" else None  # it may be installed
        if owners and not {o.lower().replace("_", "-") for o in owners} & allowed:
            asked.append(name)
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
start = time.perf_counter()
import hear_pretrainedsed
seconds = time.perf_counter() - start
new = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
"""

USE = """
model = hear_pretrainedsed.frame_mn06_strong.load_model(sys.argv[2])
soundfile.write(sys.argv[1] + "/a.wav", numpy.zeros(16000), 16000)
found = hear_pretrainedsed.detect(sys.argv[1] + "/a.wav", model)
shapes = [list(x.shape) for x in hear_pretrainedsed.get_timestamp_embeddings(
    torch.zeros(2, 16000), model)]
"""


def run(program: str, *arguments: str) -> dict:
    """The dictionary that a program in a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)  # and nothing else was printed


def test_import_and_use_with_three_packages_alone(
    tmp_path: Path, release_file: Callable[[str], Path]
) -> None:
    last = "print(json.dumps([asked, new, seconds, shapes]))"
    asked, new, seconds, shapes = run(
        BLOCKED + USE + last, str(tmp_path), str(release_file("frame_mn06.strong"))
    )
    print(f"import hear_pretrainedsed: {seconds:.2f} s beyond torch, numpy and soundfile")
    assert {"scipy", "soxr", "safetensors", "rich"}.isdisjoint(asked)
    assert shapes == [[2, 25, 576], [2, 25]]
    others = {"scipy", "soxr", "safetensors", "typer", "rich", "matplotlib", "torchaudio"}
    assert others.isdisjoint(new) and "hear_pretrainedsed" in new


def test_import_reads_no_weights_and_builds_no_network() -> None:
    program = """
import json, sys
import torch
made = []
torch.nn.Module.__init__ = lambda *a, **k: made.append(1)
torch.load = lambda *a, **k: made.append(2)
import hear_pretrainedsed
modules = [m for m in sys.modules if m.startswith("hear_pretrainedsed.")]
print(json.dumps([made, "hear_pretrainedsed.beats_strong" in modules]))
"""
    made, has_module = run(program)
    assert made == [] and has_module


def test_building_for_a_file_draws_nothing_and_imports_no_compiler() -> None:
    program = """
import json, sys
import torch, hear_pretrainedsed as hps
from hear_pretrainedsed.model import build_checkpoint
from hear_pretrainedsed.registry import CHECKPOINTS, get_checkpoint
from hear_pretrainedsed.unfilled import Unfilled
seen, before = [], torch.get_rng_state()
for name in {c.backbone + str(c.sequence_model): c.name for c in CHECKPOINTS.values()}.values():
    with Unfilled():
        build_checkpoint(get_checkpoint(name))
    if "torch._dynamo" in sys.modules or not torch.equal(torch.get_rng_state(), before):
        seen.append(name)
print(json.dumps(seen))
"""
    assert run(program) == []
