"""``python -m lmxexp.sample RUN_DIR --prompt "…"``: text from a finished run, as it is drawn."""

import argparse
import sys
from collections.abc import Iterable, Iterator

from lmxexp.interfaces import ConfigError, Tokenizer


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens, piece by piece, each as soon as it is certain.

    A character may take several tokens; until it is complete, decoding ends in U+FFFD, and nothing is given out.
    """
    pending: list[int] = []
    given, waited = "", 0
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(pending)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and waited < 3:  # a UTF-8 character has at most 4 bytes
            waited += 1
            continue
        yield text[len(given) :]
        waited = 0
        # Decoding starts over behind a line's end, where no character is open, so that its cost stays bounded.
        pending, given = ([], "") if text.endswith("\n") else (pending, text)
    yield tokenizer.decode(pending)[len(given) :]


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m lmxexp.sample", description="Let the model of a finished run write.", allow_abbrev=False
    )
    parser.add_argument("run_dir", help="directory of the run")
    parser.add_argument("--prompt", default="\n", help="what the text begins with (default: a new line)")
    parser.add_argument("--max-tokens", type=int, default=300, help="tokens to draw (default: 300)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    parser.add_argument("--top-p", type=float, default=0.95, help="share of probability to draw from (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--checkpoint", choices=["newest", "best"], default="newest")
    args = parser.parse_args(argv)
    try:
        _sample(args)
    except ConfigError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


def _sample(args: argparse.Namespace) -> None:
    from lmxexp.generate import generate
    from lmxexp.loaded import load

    run = load(args.run_dir, args.checkpoint)
    if run.tokenizer is None:
        raise ConfigError(f"{args.run_dir} was trained on data={run.cfg.choice.data}, which is no text")
    prompt = [int(t) for t in run.tokenizer.encode(args.prompt)]
    tokens = generate(
        run.model,
        prompt,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )
    print(args.prompt, end="", flush=True)
    for piece in stream_text(run.tokenizer, tokens):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
