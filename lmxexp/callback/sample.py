"""Samples of the model's text during training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmxexp.generate import generate
from lmxexp.interfaces import ConfigError

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer


class Sample:
    """Lets the model write, into ``samples.txt`` and to the loggers. Data without text gives none.

    The training's random state is not touched.

    Args:
        every: steps between two samples; 0: at the end only.
        prompt: what the text begins with; null: the first characters of the validation split.
        max_tokens: tokens of a sample.
        temperature: see `lmxexp.generate.generate`.
        top_p: likewise.
        seed: of the draws.
    """

    at_end = True
    after_log = True

    def __init__(self, every: int, prompt: str | None, max_tokens: int, temperature: float, top_p: float, seed: int):
        if max_tokens < 1:
            raise ConfigError(f"callback.sample.max_tokens={max_tokens} must be at least 1")
        self.every, self.prompt, self.max_tokens = every, prompt, max_tokens
        self.temperature, self.top_p, self.seed = temperature, top_p, seed

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        tokenizer = trainer.source.tokenizer
        if tokenizer is None:
            return {}
        prompt = self._prompt(trainer)
        with trainer.evaluated_weights():
            # All of them here: they are drawn one by one, as they are asked for, with the weights of then.
            tokens = list(
                generate(
                    trainer.model,
                    prompt,
                    max_tokens=self.max_tokens,
                    temperature=self.temperature,
                    top_p=self.top_p,
                    seed=self.seed,
                )
            )
        text = tokenizer.decode([*prompt, *tokens])
        file = trainer.run_dir / "samples.txt"
        header = f"--- step {trainer.step} ---\n"
        # A run that was killed after this sample and resumed from before it comes by again.
        earlier = file.read_text(encoding="utf-8").split(header)[0] if file.exists() else ""
        file.write_text(f"{earlier}{header}{text}\n", encoding="utf-8")
        trainer.logger.text("sample", text, step=trainer.step)
        return {}

    def _prompt(self, trainer: Trainer) -> list[int]:
        assert trainer.source.tokenizer is not None
        if self.prompt is not None:
            return [int(t) for t in trainer.source.tokenizer.encode(self.prompt)]
        return [int(t) for t in next(iter(trainer.source.eval_batches())).inputs[0][:16]]
