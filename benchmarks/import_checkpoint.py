"""Time and memory of importing a full-size checkpoint: seconds, and peak resident memory over the file's size.

    python -m benchmarks.import_checkpoint [--folder DIR] [--repeats 3]

The program writes a checkpoint like the release's trainer (ResNet-50 and BERT-base, random values, prefix `afloc.`,
about 540 MB) with PyTorch, and imports it in new processes, whose start is included. Seconds of the processor are given
as well, because other work on a machine lengthens the others. Memory is the peak that the kernel recorded for the
process, with mapped pages of the file.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKPOINT, TOKENIZER = "afloc.ckpt", "tokenizer"
REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written; default: a temporary folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--import_once", nargs=3, metavar=("CHECKPOINT", "MODEL", "TOKENIZER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.import_once:
        import_once(*arguments.import_once)
        return
    if arguments.write:
        write_checkpoint(arguments.write)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        # A process starts with its parent's peak: this one has to stay small, so the writing is done by another.
        run("--write", temporary)
        checkpoint, tokenizer = Path(temporary) / CHECKPOINT, Path(temporary) / TOKENIZER
        size = checkpoint.stat().st_size
        for _ in range(arguments.repeats):
            started, used = time.perf_counter(), _processor_seconds()
            printed = run("--import_once", checkpoint, Path(temporary) / "model", tokenizer)
            seconds = time.perf_counter() - started
            peak = json.loads(printed)["peak_bytes"]
            result = {"file_bytes": size, "seconds": round(seconds, 2), "peak_bytes": peak}
            result["processor_seconds"] = round(_processor_seconds() - used, 2)
            print(json.dumps({**result, "peak_over_file": round(peak / size, 2)}), flush=True)


def _processor_seconds() -> float:
    """Seconds that processors have worked for the children of this process that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(*arguments: object) -> str:
    """The output of this program in a new process."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def write_checkpoint(folder: Path) -> None:
    """Writes the checkpoint, and a tokenizer folder with as many entries as its text encoder has embeddings."""
    import torch

    from afloc_jax.models.settings import ModelSettings, TextSettings
    from afloc_jax.weights.torch_names import table

    model = ModelSettings(text=TextSettings(bert={"vocab_size": 28996}))  # Bio_ClinicalBERT's
    state = {f"afloc.{row.name}": torch.randn(row.shape) for row in table(model)}
    torch.save({"epoch": 4, "state_dict": state, "hyper_parameters": {}}, folder / CHECKPOINT)
    (folder / TOKENIZER).mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "##s", *(f"word{number}" for number in range(28989))]
    (folder / TOKENIZER / "vocab.txt").write_text("\n".join(pieces) + "\n")


def import_once(checkpoint: str, model: str, tokenizer: str) -> None:
    from afloc_jax.weights.importers import import_model

    import_model(checkpoint, model, tokenizer)
    print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
