"""The progress of a run, kept beside its state."""

import dataclasses

from afloc_jax.training.workdir import Finished


@dataclasses.dataclass
class Progress:
    """The progress of a run, which a checkpoint holds beside the state, as JSON numbers."""

    step: int = 0
    best_loss: float | None = None  # lowest validation loss
    best_step: int = 0
    last_loss: float | None = None  # latest validation loss
    validated_step: int = 0  # step of the latest complete validation
    waited: int = 0  # validations since the lowest loss
    stopped_early: bool = False
    plateau_best: float | None = None
    plateau_waited: int = 0
    seconds: float = 0.0  # training time over all resumptions, without compilation

    def enter(self, loss: float, patience: int) -> None:
        """Enters the validation loss of the current step.

        The run stops early after `patience` validations without improvement; 0 stands for never.
        """
        self.last_loss, self.validated_step = loss, self.step
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.waited = loss, self.step, 0
        else:
            self.waited += 1
        self.stopped_early = bool(patience) and self.waited >= patience

    def finished(self, best_step: int) -> Finished:
        """The content of finished.json for a run that ends here. `best_step` is the step of the weights kept."""
        return Finished(self.step, best_step, self.best_loss, self.last_loss, self.stopped_early, self.seconds)
