"""COCO captions: BLEU-1 to 4, ROUGE-L and CIDEr, as the organisers' toolkit computes them.

The toolkit's tokenizer is a Java program; `tokens` does the same for captions in ASCII: words,
numbers, contractions split as the Penn Treebank splits them, punctuation dropped. METEOR and SPICE
need Java and are not computed. CIDEr is the toolkit's, which is CIDEr-D.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from statistics import fmean

from llava_cli.evals.rows import Row, read_rows, row_id, row_text
from llava_cli.evals.scoring import (
    Inputs,
    Notes,
    Verdict,
    answer_map,
    find,
    graded,
    leftovers,
    needed,
    prediction_rows,
)

RULE = "lower case, Penn Treebank words without punctuation; BLEU, ROUGE-L, CIDEr-D x 100"
MISSING = "left out, as the organisers do"
FILES = ("captions_val*.json", "captions*.json", "*.json")
NGRAMS = 4
SIGMA = 6.0
BETA = 1.2
_TOKEN = re.compile(
    r"(?:[a-z]\.){2,}|(?:mrs?|ms|dr|jr|sr|st|vs|ave|blvd|inc|corp|ltd)\.(?!\w)|\d+(?:[.,:/]\d+)*(?:st|nd|rd|th)?|[^\W_]+(?:['/&_-][^\W_]+)*"
    r"|[^\w\s'.,:;!?\"`-]"
)
_BRACKETS = dict(zip("(){}[]", "-lrb- -rrb- -lcb- -rcb- -lsb- -rsb-".split(), strict=True))
"""Written out by the tokenizer in lower case, which the list of dropped tokens has in capitals."""
_CLITICS = frozenset("n't 's 'm 'd 're 've 'll".split())
_NOT = re.compile(r"(?<=\w)(n't)\b")
_CLITIC = re.compile(r"(?<=\w)('(?:s|m|d|re|ve|ll))\b")
_CANNOT = re.compile(r"\bcan(not)\b")
Grams = Counter[tuple[str, ...]]


def tokens(caption: str) -> list[str]:
    """The words of a caption."""
    text = caption.lower().replace("\n", " ")
    text = _CANNOT.sub(r"can \1", text)
    text = _CLITIC.sub(r" \1 ", _NOT.sub(r" \1 ", text))
    found: list[str] = []
    for part in text.split():
        found += [part] if part in _CLITICS else _TOKEN.findall(part)
    return [_BRACKETS.get(token, token) for token in found]


def verdicts(inputs: Inputs, notes: Notes) -> Iterator[Verdict]:
    """One verdict a picture; its `extra` holds the tokens of candidate and references."""
    answers = answer_map(
        prediction_rows(inputs),
        lambda row: row_id(row, "image_id", "question_id"),
        lambda row: row_text(row, "caption", "text"),
        notes,
    )
    for image, references in _references(inputs).items():
        said = [tokens(text) for text in references]
        answer = answers.pop(image, None)
        if answer is None:
            yield Verdict(image, references, None, None, 0.0, "missing", (), ([], said))
            continue
        words = tokens(answer.text)
        score = rouge_l(words, said)
        reason = graded(1.0 if words in said else score)
        yield Verdict(
            image,
            references,
            answer.text,
            " ".join(words),
            score,
            reason,
            (),
            (words, said),
        )
    leftovers(answers, notes)


def _references(inputs: Inputs) -> dict[object, list[str]]:
    found: dict[object, list[str]] = {}
    for path in find(needed(inputs.annotations, FILES[0]), *FILES):
        for row in read_rows(path, "annotations"):
            found.setdefault(row_id(row, "image_id"), []).extend(_captions(row))
    return found


def _captions(row: Row) -> list[str]:
    if isinstance(row.data.get("captions"), list):
        return [str(text) for text in row.data["captions"]]
    return [row_text(row, "caption")]


def metrics(items: Iterable[Verdict]) -> dict[str, float]:
    """`bleu_1` to `bleu_4`, `rouge_l`, `cider`, all x 100."""
    pairs = []
    for item in items:
        if item.text is not None:
            pairs.append(item.extra)
    found = {f"bleu_{n}": 100.0 * v for n, v in enumerate(bleu(pairs), 1)}
    found["rouge_l"] = 100.0 * fmean(rouge_l(said, refs) for said, refs in pairs)
    found["cider"] = 100.0 * cider(pairs)
    return found


Pair = tuple[list[str], list[list[str]]]


def grams(words: list[str]) -> Grams:
    """All n-grams of 1 to 4 words."""
    return Counter(
        tuple(words[i : i + n]) for n in range(1, NGRAMS + 1) for i in range(len(words) - n + 1)
    )


def bleu(pairs: list[Pair]) -> list[float]:
    """Corpus BLEU-1 to 4 with the reference length that is closest, the shorter of two."""
    guessed, correct = [0] * NGRAMS, [0] * NGRAMS
    length = reference_length = 0
    for said, references in pairs:
        length += len(said)
        reference_length += min((abs(len(r) - len(said)), len(r)) for r in references)[1]
        most: Grams = Counter()
        for reference in references:
            most |= grams(reference)
        counts = grams(said)
        for gram, count in counts.items():
            correct[len(gram) - 1] += min(count, most[gram])
        for n in range(NGRAMS):
            guessed[n] += max(0, len(said) - n)
    tiny, small = 1e-15, 1e-9  # the toolkit's
    ratio = (length + tiny) / (reference_length + small)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(NGRAMS):
        product *= (correct[n] + tiny) / (guessed[n] + small)
        scores.append(product ** (1.0 / (n + 1)) * penalty)
    return scores


def rouge_l(said: list[str], references: list[list[str]]) -> float:
    """F of the longest common subsequence: best precision and best recall, beta 1.2."""
    common = [_longest_common(said, reference) for reference in references]
    precision = max((c / len(said) for c in common), default=0.0) if said else 0.0
    recall = max((c / len(r) for c, r in zip(common, references, strict=True) if r), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for i, other in enumerate(b, 1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    return row[-1]


def cider(pairs: list[Pair]) -> float:
    """CIDEr-D, mean over pictures, on the toolkit's scale (10 x the cosine)."""
    cooked = [(grams(said), [grams(r) for r in refs]) for said, refs in pairs]
    documents: Counter[tuple[str, ...]] = Counter()
    for _, references in cooked:
        documents.update({gram for reference in references for gram in reference})
    log_n = math.log(len(pairs)) if pairs else 0.0

    def vector(counts: Grams) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        parts: list[dict[tuple[str, ...], float]] = [{} for _ in range(NGRAMS)]
        for gram, count in counts.items():
            weight = count * (log_n - math.log(max(1.0, documents[gram])))
            parts[len(gram) - 1][gram] = weight
        norms = [math.sqrt(sum(w * w for w in part.values())) for part in parts]
        return parts, norms, sum(c for gram, c in counts.items() if len(gram) == 2)

    scores = []
    for said, references in cooked:
        own, norms, length = vector(said)
        total = 0.0
        for reference in references:
            theirs, their_norms, their_length = vector(reference)
            penalty = math.exp(-((length - their_length) ** 2) / (2 * SIGMA**2))
            for n in range(NGRAMS):
                dot = sum(
                    min(weight, theirs[n].get(gram, 0.0)) * theirs[n].get(gram, 0.0)
                    for gram, weight in own[n].items()
                )
                if norms[n] and their_norms[n]:
                    total += penalty * dot / (norms[n] * their_norms[n])
        scores.append(10.0 * total / NGRAMS / max(1, len(references)))
    return fmean(scores) if scores else 0.0
