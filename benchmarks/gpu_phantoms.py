"""One file with phantoms and the training batches of some hundred steps, for gpu_card.py.

    python -m benchmarks.gpu_phantoms phantoms.npz [--pairs 1024] [--batch 128] [--steps 300]

A machine with a GPU may have none of the data packages, and little time. Images are therefore JPEG (quality 92), and
batches are tokens and indices of images.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import cv2
import numpy as np


def main(given: list[str] | None = None) -> None:
    from configs.afloc import get_config
    from data_pipelines.batches import training_batches, training_tokenizer
    from data_pipelines.prepared import open_source
    from data_pipelines.vocabulary import VocabularyRule

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE.npz")
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args(given)
    config = get_config()
    with config.unlocked():
        config.training.batch_size = arguments.batch
    builder = {"train": arguments.pairs, "validation": 1, "test": 1, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        source = open_source("phantom", folder, "train", raw="", builder=builder)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
        files = [cv2.imencode(".jpg", source[i].image, quality)[1].ravel() for i in range(arguments.pairs)]
        stream = training_batches(
            source,
            config.data,
            training_tokenizer(source, rule=VocabularyRule(1, 1)),  # nothing in phantoms is private
            batch_size=config.training.batch_size,
            seed=config.seed,
        ).iterate()
        batches = list(itertools.islice(stream, arguments.steps))
    arrays = {"jpeg": np.concatenate(files), "ends": np.cumsum([len(file) for file in files])}
    by_name = [{name: np.asarray(array) for name, array in batch.items() if name != "image"} for batch in batches]
    arrays |= {name: np.stack([batch[name] for batch in by_name]) for name in by_name[0]}
    np.savez_compressed(arguments.out, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
