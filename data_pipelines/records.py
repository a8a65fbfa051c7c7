"""The one record that every builder yields, whatever the data set.

Images are stored as raw one-channel uint8 bytes of the padded square (`image_size` x `image_size`): reading one
costs a memory copy, not a PNG decode. Masks are evaluation data, read rarely, and kept as PNG bytes of the same square.
"""

import numpy as np
import tensorflow_datasets as tfds

IMAGE_SIZE = 224  # side of the stored square, pixels (published preprocessing)


def record_features() -> tfds.features.FeaturesDict:
    """The TFDS feature specification shared by all builders."""
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),  # unique within the data set, safe to print (never report text)
            "image": tfds.features.Scalar(dtype=np.object_),  # raw uint8 bytes, image_size * image_size
            "image_size": np.int32,
            "original_height": np.int32,
            "original_width": np.int32,
            "patient": tfds.features.Text(),  # pseudonym of the patient; empty if unknown
            "view": tfds.features.Text(),
            "sentences": tfds.features.Sequence(tfds.features.Text()),  # cleaned sentences in the order of the report
            "impression_count": np.int32,  # how many of the sentences belong to the impression (the leading ones)
            "findings": tfds.features.Sequence(  # evaluation only: one entry per annotated finding; may be empty
                {
                    "label": tfds.features.Text(),  # category, e.g. "pleural effusion"
                    "prompt": tfds.features.Text(),  # the phrase that asks for it, e.g. "small left effusion"
                    "mask": tfds.features.Scalar(dtype=np.object_),  # PNG bytes, image_size x image_size, 0 / 255
                }
            ),
        }
    )
