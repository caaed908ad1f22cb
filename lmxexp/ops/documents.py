"""Where documents begin, for mixers that carry a state along."""

import mlx.core as mx


def documents(segment_ids: mx.array) -> mx.array:
    """Numbers the documents of each row: ``(B, L)`` ids, a new document wherever they change, to ``(B, L)`` int32
    that grows by one at each border. An id that comes back later is another document: its state is gone."""
    return mx.cumsum(starts(segment_ids).astype(mx.int32), axis=1)


def starts(segment_ids: mx.array) -> mx.array:
    """``(B, L)`` boolean: True at the first position of every document but a row's first, where the state that is
    handed in (or none) goes on."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return mx.concatenate([mx.zeros((segment_ids.shape[0], 1), mx.bool_), changes], axis=1)


def document_starts(segment_ids: mx.array) -> mx.array:
    """``(B, L)`` ids to ``(B, L)`` int32: the position at which each position's document begins, see `starts`."""
    position = mx.arange(segment_ids.shape[1])
    return mx.cummax(mx.where(starts(segment_ids), position, 0), axis=1)


def places(segment_ids: mx.array) -> mx.array:
    """``(B, L)`` ids to ``(B, L)`` int32: where each position stands in its document, from 0, see `starts`."""
    return mx.arange(segment_ids.shape[1]) - document_starts(segment_ids)
