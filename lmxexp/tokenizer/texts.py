"""The text that a tokenizer may learn from."""

from collections.abc import Callable, Iterable, Iterator

from lmxexp.data.corpus import Continued


class Texts:
    """Calling it gives the documents of the training split; `with_validation` those of both splits.

    A tokenizer that is fitted to how often things occur learns from the training split alone. One that only lists the
    symbols there are takes both, or the validation split could not be written down.

    Args:
        train: the documents of the training split; called anew for every pass.
        validation: the documents of the validation split.
    """

    def __init__(self, train: Callable[[], Iterable[str]], validation: Callable[[], Iterable[str]]):
        self.train, self.validation = train, validation

    def __call__(self) -> Iterator[str]:
        yield from self.train()

    def with_validation(self) -> Iterator[str]:
        n = 0
        for split in (self.train, self.validation):
            n_split = 0
            for document in split():
                n_split += not isinstance(document, Continued)
                yield document
            n = max(n, n_split)
        if n > 1:
            yield "\n"  # joins documents where a tokenizer has no end-of-text token
