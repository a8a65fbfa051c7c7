"""COVID Rural: opacity masks on radiographs of COVID-19-AR. See docs/datasets/covid_rural.md."""

from collections.abc import Iterator

from data_pipelines.building.expected_files import Files
from data_pipelines.building.items import Item
from data_pipelines.building.published import PublishedBuilder
from data_pipelines.regions import MaskFile

_LABEL = "Pneumonia"  # the class in the prompt of the published protocol; the masks show opacities


class Builder(PublishedBuilder):
    """The images with their masks. A patient may have several."""

    FILES = (
        Files("jpgs/COVID-19-AR-*.jpg", "images, covid_rural_annot/jpgs"),
        Files("pngs_masks/COVID-19-AR-*.png", "masks, covid_rural_annot/pngs_masks"),
    )

    def cases(self) -> Iterator[Item]:
        """One item per pair of files in the order of the names, COVID-19-AR-<patient>_<date>-XR."""
        names = {path.stem for files in self.FILES for path in self.raw.glob(files.pattern)}
        for name in sorted(names):
            image, mask = self.raw / "jpgs" / f"{name}.jpg", self.raw / "pngs_masks" / f"{name}.png"
            if not mask.is_file():
                self.lack(mask, "mask not there")
                continue
            item = Item(name, image, name.partition("_")[0], study=name)  # a missing image is reported later
            item.add(_LABEL, self.prompt_for(_LABEL), MaskFile(mask))
            item.labels = {_LABEL.lower(): 1}
            yield item
