"""How a fit shows itself: a bar on a terminal, plain lines in a log file."""

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger("nunchi")


class Progress:
    """Shows where a fit is, at most every `seconds`.

    Args:
        stage: The stage's name, shown in front.
        seconds: Least time between two signs of life: of the bar on a terminal, of a line elsewhere.
    """

    def __init__(self, stage: str, seconds: float | None = None) -> None:
        self.stage = stage
        self.terminal = sys.stderr.isatty()
        self.seconds = seconds if seconds is not None else (0.2 if self.terminal else 30.0)
        self._bar: tqdm | None = None
        self._epoch = -1
        self._shown_at = time.monotonic()

    def __call__(
        self, epoch: int, epochs: int | None, batch: int, batches: float, loss: float | None, data_wait: float
    ) -> None:
        """One step is done: `batch` of `batches` in `epoch`."""
        now = time.monotonic()
        if now - self._shown_at < self.seconds:
            return
        self._shown_at = now
        text = f"{self.stage} epoch {epoch + 1}/{epochs or '?'}"
        detail = f"loss {loss:.4f}, waited for data {data_wait:.0%}" if loss is not None else ""
        if self.terminal:
            self._draw(epoch, text, batch, batches, detail)
        else:
            log.info("%s batch %d/%s: %s", text, batch, batches, detail)

    def _draw(self, epoch: int, text: str, batch: int, batches: float, detail: str) -> None:
        if self._bar is None or epoch != self._epoch:
            self.close()
            total = int(batches) if batches != float("inf") else None
            self._bar, self._epoch = tqdm(total=total, desc=text, leave=False, dynamic_ncols=True), epoch
        self._bar.n = batch
        self._bar.set_postfix_str(detail, refresh=False)
        self._bar.refresh()

    def epoch_line(self, epoch: int, metrics: dict[str, float]) -> None:
        """The validation figures of an epoch, as a line that stays."""
        self.close()
        shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        log.info("%s epoch %d: %s", self.stage, epoch + 1, shown)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
