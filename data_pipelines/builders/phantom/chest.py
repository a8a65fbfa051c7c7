"""A chest: its proportions, its pose, and the layers of its image.

The chest frame has its origin in the middle of the thorax. x grows to the right of the image (the patient's LEFT), y
grows downwards, and one unit is one pixel of an unscaled 224 x 224 image (1.65 mm). A rotation, a scale and a shift map
it to pixels. Layers are float32 [224, 224] in units of displayed brightness (0 black, 1 white).
"""

from dataclasses import dataclass, field

import numpy as np

RIGHT, LEFT = -1, 1  # side of the PATIENT, as the sign of x: the patient's right is on the left of the image
MM_PER_UNIT = 1.65  # a thorax of 165 units is 270 mm wide inside
LUNG_CONTRAST = 0.52  # brightness that a full thickness of air takes away
HIDDEN_BY_HEART = 0.72  # share of the air's contrast that is lost where heart or mediastinum lie in front

# the inner chest wall, as fractions of the lung's height and of the half width: apex, cupola, flank
_WALL_Y = np.array([0.0, 0.012, 0.05, 0.1, 0.17, 0.26, 0.38, 0.52, 0.68, 0.84, 1.0])
_WALL_X = np.array([0.34, 0.44, 0.54, 0.625, 0.71, 0.79, 0.865, 0.925, 0.97, 0.995, 0.99])


@dataclass(frozen=True)
class Pose:
    """How widely the places of chests on their images differ."""

    turn: float  # standard deviation in degrees
    scale: tuple[float, float]  # pixels per unit of the chest frame
    shift: float  # standard deviation in pixels
    stretch: float = 0.0  # standard deviation of the logarithms of width and height; 0 keeps their ratio
    breath: float = 6.0  # standard deviation of the height of the diaphragm, in the chest frame
    lift: float = 0.0  # how much higher it stands on average: breath is shallower
    heart: float = 0.0  # largest addition to the ratio of a heart that is called normal


USUAL_POSE = Pose(2.2, (0.95, 1.15), 5.0)
VARIED_POSE = Pose(4.0, (0.78, 1.25), 9.0, stretch=0.08, breath=9.0, lift=6.0, heart=0.06)


def _empty() -> np.ndarray:
    return np.zeros((0, 0), np.float32)


@dataclass
class Chest:
    """Proportions (chest frame) and layers (pixels) of one chest."""

    view: str  # PA or AP
    half_width: float  # inner half width of the rib cage at the base
    apex: float  # y of the lung apices
    dome: dict[int, float]  # y of the top of each half of the diaphragm, by side
    angle: dict[int, float]  # y of each costophrenic angle
    heart_ratio: float  # cardiothoracic ratio: width of the heart / width of the thorax
    heart_share: float  # share of the heart's width that lies on the patient's left
    heart_round: float  # 0 for a pointed, 1 for a round left border
    matrix: np.ndarray  # [2, 3] chest frame -> pixels
    grid_x: np.ndarray  # [224, 224] chest-frame x of every pixel
    grid_y: np.ndarray
    lung: dict[int, np.ndarray] = field(default_factory=dict)  # soft silhouettes 0..1 by side
    air: np.ndarray = field(default_factory=_empty)  # thickness of air 0..1, as if nothing lay in front
    body: np.ndarray = field(default_factory=_empty)  # thickness of the trunk 0..1
    solid: np.ndarray = field(default_factory=_empty)  # soft tissue, spine, shoulder girdle
    ribs: np.ndarray = field(default_factory=_empty)
    vessels: np.ndarray = field(default_factory=_empty)  # vessels and lung texture: gone where there is no lung
    heart: np.ndarray = field(default_factory=_empty)  # silhouette 0..1
    mediastinum: np.ndarray = field(default_factory=_empty)  # silhouette 0..1 of the great vessels

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] from the chest frame to pixels."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    @property
    def scale(self) -> float:
        """Pixels per unit of the chest frame."""
        return float(np.hypot(self.matrix[0, 0], self.matrix[1, 0]))

    @property
    def central(self) -> np.ndarray:
        """Silhouette 0..1 of everything between the lungs."""
        return np.maximum(self.heart, self.mediastinum)

    def visible_air(self) -> np.ndarray:
        """The visible air: heart and mediastinum hide some of it."""
        return self.air * (1 - HIDDEN_BY_HEART * self.central)

    def wall(self, y: np.ndarray | float) -> np.ndarray:
        """Distance of the inner chest wall from the midline at height y."""
        heights = self.apex + _WALL_Y * (self.angle[RIGHT] - self.apex)
        return np.asarray(self.half_width * np.interp(y, heights, _WALL_X), np.float32)

    def diaphragm(self, side: int, x: np.ndarray) -> np.ndarray:
        """Height y of the diaphragm at |x| on one side."""
        u = np.abs(x) / self.half_width - 0.46
        lateral, medial = self.angle[side] - self.dome[side], 13.0
        return self.dome[side] + np.where(u > 0, lateral * (np.maximum(u, 0) / 0.53) ** 2.1, medial * (u / 0.4) ** 2)

    def lung_height(self, y: float | np.ndarray) -> float | np.ndarray:
        """The relative height in the lung: 0 at the apex, 1 at the top of the diaphragm."""
        return (y - self.apex) / (0.5 * (self.dome[RIGHT] + self.dome[LEFT]) - self.apex)

    def zone(self, y: float) -> str:
        """The third of the lung at height y: upper, mid or lower."""
        t = self.lung_height(y)
        return "upper" if t < 0.37 else "mid" if t < 0.68 else "lower"
