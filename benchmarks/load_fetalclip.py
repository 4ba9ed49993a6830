"""Peak memory of loading FetalCLIP's 1.7 GB file, as a multiple of its image tower: it must stay below 2.2.

Writes a checkpoint of the published names and shapes with stand-in numbers (tests/golden/fill.py) to a temporary folder,
or takes the path of a real one: ``python benchmarks/load_fetalclip.py [FILE]``.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
LIMIT = 2.2
WRITE = """
import sys, numpy, torch
sys.path.insert(0, sys.argv[1])
import fill
tensors = fill.tensors(sys.argv[1] + "/fetalclip/checkpoint_keys.json")
torch.save({name: torch.from_numpy(numpy.asarray(array)) for name, array in tensors.items()}, sys.argv[2])
"""
LOAD = """
import json, sys, time
from fpbench.encoders import load_encoder
from fpbench.files.machine import peak_memory
import timm, torch
before, start = peak_memory(), time.perf_counter()
encoder = load_encoder("fetalclip", sys.argv[1])
tower = sum(tensor.nbytes for tensor in encoder.module.state_dict().values())
seconds = time.perf_counter() - start
print(json.dumps({"imports": before, "peak": peak_memory(), "tower": tower, "seconds": round(seconds, 1)}))
"""


def main(file: str | None = None) -> int:
    """Print the figures; return 1 if the limit is passed."""
    with tempfile.TemporaryDirectory() as folder:
        path = file or f"{folder}/FetalCLIP_weights.pt"
        if not file:
            subprocess.run([sys.executable, "-c", WRITE, str(GOLDEN), path], check=True)
        done = subprocess.run([sys.executable, "-c", LOAD, path], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = found["peak"] / found["tower"]
        print(
            f"file {Path(path).stat().st_size / 1e6:,.0f} MB, image tower {found['tower'] / 1e6:,.0f} MB, imports {found['imports'] / 1e6:,.0f} MB"
        )
        print(f"peak {found['peak'] / 1e6:,.0f} MB = {ratio:.2f} x the tower (limit {LIMIT}), {found['seconds']} s")
    return int(ratio >= LIMIT)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
