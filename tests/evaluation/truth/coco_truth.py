"""A truth file as MS-CXR writes it."""

import copy

COCO = {
    "images": [
        {"id": 1, "path": "files/a.jpg", "height": 300, "width": 448},
        {"id": 2, "file_name": "b.jpg", "height": 90, "width": 56},
    ],
    "categories": [{"id": 1, "name": "Edema"}, {"id": 2, "name": "Effusion"}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 1, "bbox": [100, 40, 60, 80], "label_text": "Mild edema"},
        {"id": 11, "image_id": 2, "category_id": 2, "bbox": [10, 20, 20, 30], "label_text": "Small effusion"},
        {"id": 12, "image_id": 1, "category_id": 1, "bbox": [140, 40, 60, 80], "label_text": "mild edema"},
        {"id": 13, "image_id": 1, "category_id": 2, "bbox": [140, 40, 60, 80], "label_text": "mild edema"},
    ],
}


def changed(position, **fields):
    """COCO with some fields of one annotation replaced (None removes)."""
    content = copy.deepcopy(COCO)
    for name, value in fields.items():
        content["annotations"][position][name] = value
        if value is None:
            del content["annotations"][position][name]
    return content
