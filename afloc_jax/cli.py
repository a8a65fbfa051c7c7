"""The `afloc` command: each subcommand is a thin layer over one function of the library.

Exit status: 0 done, 1 failed work, 2 a wrong call. Errors are one line on stderr; `--debug` adds the traceback.
Heavy modules are imported by the command that needs them, so that --help answers at once.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import afloc_jax
from afloc_jax.errors import UserError

DESCRIPTION = "Annotation-free pathology localisation: where is this phrase in this image?"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, not with a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parsed = parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed) or 0)
    except UserError as error:
        return _fail(parsed, str(error), error.exit_status)
    except KeyboardInterrupt:
        return _fail(parsed, "interrupted; files written so far are whole", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(parsed, f"{where}{error.strerror or error}", 1)
    except Exception as error:  # a defect of ours: still one line, with the way to the rest
        first = str(error).splitlines()[0] if str(error) else ""
        return _fail(parsed, f"internal error, {type(error).__name__}: {first}; run again with --debug", 1)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(prog="afloc", description=DESCRIPTION)
    top.add_argument("--version", action="version", version=f"afloc_jax {afloc_jax.__version__}")
    commands = top.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    _add_localize(commands)
    _add_classify(commands)
    _add_evaluate(commands)
    _add_score(commands)
    _add_prepare(commands)
    _add_report(commands)
    return top


def _add(commands, name: str, summary: str, example: str, run) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=run)
    return command


def _add_localize(commands) -> None:
    command = _add(
        commands,
        "localize",
        "heat maps and boxes for phrases on images",
        'afloc localize runs/demo/model chest.png --prompt "small left pleural effusion" --out out\n\n'
        "For image a.png and prompt k (from 0), writes a.k.heatmap.npy (float32, un-normalised similarity),\n"
        "a.k.overlay.png, and one localize.json with boxes (x, y, width, height in original pixels). Images of the\n"
        "same name are told apart by their folders.",
        _run_localize,
    )
    _add_model_and_images(command)
    command.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="a phrase; repeatable")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    command.add_argument(
        "--threshold",
        type=_threshold,
        default=0.3,
        help="of boxes, on the map scaled to [-1, 1] by its minimum and maximum (default: %(default)s)",
    )
    command.add_argument(
        "--map",
        choices=("original", "square"),
        default="original",
        help="map at the image's own size, or of the zero-padded square as the published release has it",
    )
    _add_compatible(command)


def _add_classify(commands) -> None:
    command = _add(
        commands,
        "classify",
        "zero-shot probability of classes in images",
        "afloc classify runs/demo/model chest.png --class pneumonia --class edema --out scores.csv",
        _run_classify,
    )
    _add_model_and_images(command)
    command.add_argument("--class", action="append", dest="classes", metavar="NAME", help="a finding; repeatable")
    command.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="JSON: class -> phrases, or {positive, negative}, or word lists {severity, subtype, location}",
    )
    command.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="one row per image")
    _add_compatible(command)


def _add_evaluate(commands) -> None:
    command = _add(
        commands,
        "evaluate",
        "localisation scores of a model on a data set, beside two baselines",
        "afloc evaluate runs/demo/model --dataset phantom --data data --out scores",
        _run_evaluate,
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    command.add_argument("--dataset", required=True, metavar="NAME", help="a builder: phantom, masks, ...")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="where prepared records are")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    command.add_argument("--raw", default="", metavar="DIR", help="raw files, to prepare records that are absent")
    _add_builder(command)
    command.add_argument("--split", default="test", help="which part is scored (default: %(default)s)")
    command.add_argument(
        "--prior-split",
        default="train",
        help='which part makes the location prior; "" takes the other evaluation images (default: %(default)s)',
    )
    command.add_argument("--bootstrap", type=_count, default=1000, help="resamples (default: %(default)s)")
    _add_protocol(command)
    _add_compatible(command)


def _add_score(commands) -> None:
    command = _add(
        commands,
        "score",
        "scores of any system's heat maps",
        "afloc score --truth annotations.json --heatmaps maps.npz --out scores",
        _run_score,
    )
    command.add_argument("--truth", type=Path, required=True, metavar="FILE", help="COCO JSON or CheXlocalize RLE JSON")
    command.add_argument(
        "--heatmaps",
        type=Path,
        required=True,
        metavar="FILE.npz",
        help='keys "<image path><tab><phrase, lower case>", each a map of the padded square or of the original size',
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    _add_protocol(command)
    _add_compatible(command)


def _add_prepare(commands) -> None:
    command = _add(
        commands,
        "prepare",
        "raw files of a data set to records",
        "afloc prepare pairs --raw my_pairs --out data",
        _run_prepare,
    )
    command.add_argument("name", metavar="NAME", help="a builder: phantom, pairs, masks, ...")
    command.add_argument("--raw", default="", metavar="DIR", help="raw files (phantom needs none)")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where records go")
    _add_builder(command)
    command.add_argument("--workers", type=_count, default=0, metavar="N", help="processes that decode images")


def _add_report(commands) -> None:
    command = _add(
        commands,
        "report",
        "the report page of a run, written anew from its files",
        "afloc report runs/demo",
        _run_report,
    )
    command.add_argument("workdir", type=Path, metavar="WORKDIR", help="working directory of a run")


def _add_model_and_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    command.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="PNG, JPEG or DICOM, 8 or 16 bit")


def _add_builder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--builder",
        action="append",
        type=_setting,
        default=[],
        metavar="KEY=VALUE",
        help="argument of the builder, such as test=300; repeatable; other arguments are other records",
    )


def _add_protocol(command: argparse.ArgumentParser) -> None:
    command.add_argument("--protocol", default="afloc", help="how maps are scored (default: %(default)s)")


def _add_compatible(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--compatible", action="store_true", help="reproduce the published release number for number, defects included"
    )


def _threshold(text: str) -> float:
    value = float(text)
    if not -1 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must lie between -1 and 1")
    return value


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value  # a plain word is text


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value


def _run_localize(given: argparse.Namespace) -> int:
    from afloc_jax.inference.files import localize_files

    done, failed = localize_files(
        given.model,
        given.images,
        given.prompt,
        given.out,
        threshold=given.threshold,
        square=given.map == "square",
        compatible=given.compatible,
    )
    return _finish(done, failed, given.out)


def _run_classify(given: argparse.Namespace) -> int:
    from afloc_jax.inference.files import classify_files

    done, failed = classify_files(
        given.model, given.images, given.classes, given.out, prompts=given.prompts, compatible=given.compatible
    )
    return _finish(done, failed, given.out)


def _run_evaluate(given: argparse.Namespace) -> int:
    from afloc_jax.evaluation.run import evaluate_dataset

    summary = evaluate_dataset(
        given.model,
        given.out,
        {
            "name": given.dataset,
            "directory": str(given.data),
            "raw": given.raw,
            "builder": dict(given.builder),
            "split": given.split,
            "prior_split": given.prior_split,
            "protocol": given.protocol,
            "compatible": given.compatible,
            "bootstrap": given.bootstrap,
        },
    )
    _print_summary(summary, given.out)
    return 0


def _run_score(given: argparse.Namespace) -> int:
    from afloc_jax.evaluation.results import score_files

    summary = score_files(given.truth, given.heatmaps, given.out, protocol=given.protocol, compatible=given.compatible)
    _print_summary(summary, given.out)
    return 0


def _run_prepare(given: argparse.Namespace) -> int:
    from data_pipelines.sources import prepare

    report = prepare(given.name, given.out, raw=given.raw, builder=dict(given.builder), workers=given.workers)
    counts = ", ".join(f"{split} {count}" for split, count in report.get("records", {}).items())
    print(f"{'built' if report['built'] else 'found'} {report['folder']}: {counts}")
    if report.get("rejected"):
        print(f"{len(report['rejected'])} images rejected, named in build_report.json there")
    return 0


def _run_report(given: argparse.Namespace) -> int:
    from afloc_jax.evaluation.report import write_report

    print(write_report(given.workdir))
    return 0


def _finish(done: int, failed: Sequence[str], out: Path) -> int:
    if not failed:
        print(f"{done} image{'s' if done != 1 else ''} done, results in {out}")
        return 0
    print(f"afloc: {len(failed)} of {done + len(failed)} images failed, the others are in {out}", file=sys.stderr)
    return 1


def _print_summary(summary, out: Path) -> None:
    for metric, values in summary["metrics"].items():
        overall = values["overall"]
        if overall["mean"] is not None:
            print(f"{metric:10s} {overall['mean']:7.3f}  [{overall['lower']:.3f}, {overall['upper']:.3f}]")
    print(f"{summary['n']} samples, results in {out}")


def _fail(parsed: argparse.Namespace, message: str, status: int) -> int:
    if parsed.debug:
        traceback.print_exc()
    print(f"afloc: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
