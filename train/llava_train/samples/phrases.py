"""Noun phrases and verbs of short English texts, by closed word lists and endings.

A documented, simple chunker: no model, no download, hundreds of thousands of captions a minute. It
splits a text at punctuation and at words that cannot stand inside a noun phrase (articles, other
determiners, prepositions, pronouns, conjunctions, auxiliaries, common verbs, adverbs), and takes
what remains between them as phrases:

    a man riding a brown horse on the beach  ->  man, brown horse, beach

`-ing` and `-ed` words end a phrase unless they stand before its noun ("a parked car") or are nouns
of their own ("building"). What it gets wrong, it gets wrong alike in every caption, so frequencies
remain comparable. Where a real tagger is wanted, `spacy_phrases` takes any installed spaCy model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from llava_cli.errors import MissingDependency, UsageError

Chunker = Callable[[str], list[str]]
"""From a text to its noun phrases, in lower case."""

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[^\w\s]")
_BREAKS = frozenset(
    """
    a an the this that these those some any each every either neither no all both half several many
    much few more most other another such what which whose his her its their our your my
    of in on at by for with without from to into onto over under above below between among against
    through during before after behind beside besides near across along around about beyond up down
    off out toward towards inside outside upon within via per as like than next while because if
    when where who whom why how whether although though since until and or but nor so yet
    i you he she it we they me him them us myself himself herself itself themselves one ones
    someone somebody something anyone anything everyone everything nobody nothing there here
    is are was were be been being am has have had having do does did done can could will would
    shall should may might must not n't ’s 's isn't aren't don't doesn't
    very too just only also then now again still already always never often sometimes away together
    back ahead apart else even quite rather almost
    """.split()
)
_VERBS = frozenset(
    """
    stand stands stood sit sits sat lie lies lay ride rides rode hold holds held walk walks walked
    run runs ran look looks looked wear wears wore play plays played eat eats ate drink drinks drank
    fly flies flew take takes took make makes made get gets got go goes went come comes came put
    puts show shows showed see sees saw seen use uses used give gives gave gone taken shown held
    jump jumps jumped hang hangs hung read reads write writes wrote throw throws threw catch catches
    caught hit hits pull pulls pulled push pushes pushed carry carries carried watch watches watched
    wait waits waited drive drives drove swim swims swam climb climbs climbed cook cooks cooked cut
    cuts sleep sleeps slept smile smiles smiled talk talks talked work works worked try tries tried
    travel travels traveled pose poses posed rest rests rested contain contains contained
    describe describes tell tells told think thinks explain suggest suggests happen happens
    indicate indicates know knows say says said need needs want wants help helps keep keeps kept
    """.split()
)
_ING_NOUNS = frozenset(
    """
    building ceiling evening morning wedding painting clothing king ring string wing spring thing
    swing drawing lightning pudding bedding railing awning sibling parking lighting earring frosting
    setting dressing icing stuffing crossing opening landing meeting engraving wring sling topping
    dining living swimming boxing skiing surfing shopping
    """.split()
)
_ING = re.compile(r"[^\W\d_]{2,}ing")
_ED = re.compile(r"[^\W\d_]{2,}ed")
_ED_OTHERS = frozenset("red bed shed sled seed weed reed feed steed breed".split())
_ADVERB = re.compile(r"[^\W\d_]{3,}ly")
_LY_OTHERS = frozenset(
    "family belly jelly fly butterfly lily lovely elderly friendly curly".split()
)


def noun_phrases(text: str) -> list[str]:
    """The phrases of a text, in order, each without its article."""
    found: list[str] = []
    run: list[str] = []
    for word in _WORD.findall(text.lower()):
        if _ends(word, run):
            _finish(run, found)
        else:
            run.append(word)
    _finish(run, found)
    return found


def verbs(text: str) -> Iterator[str]:
    """Words of a text that are verbs by our lists and endings."""
    for word in _WORD.findall(text.lower()):
        if word in _VERBS or (_ING.fullmatch(word) and word not in _ING_NOUNS):
            yield word


def nouns(text: str) -> Iterator[str]:
    """The heads of its noun phrases: their last words."""
    for phrase in noun_phrases(text):
        yield phrase.rpartition(" ")[2]


def chunker(name: str) -> Chunker:
    """`simple`, or `spacy:MODEL` for an installed spaCy model."""
    if name == "simple":
        return noun_phrases
    if name.startswith("spacy:"):
        return _spacy_phrases(name.removeprefix("spacy:"))
    raise UsageError(f"there is no tagger {name}", "choose simple, or spacy:en_core_web_sm")


def _spacy_phrases(model: str) -> Chunker:
    try:
        import spacy
    except ImportError as error:
        raise MissingDependency(
            "the tagger needs spaCy", f"pip install spacy && python -m spacy download {model}"
        ) from error
    try:
        nlp = spacy.load(model, exclude=["ner"])
    except OSError as error:
        raise MissingDependency(
            f"spaCy has no model {model}", f"python -m spacy download {model}"
        ) from error

    def phrases(text: str) -> list[str]:
        return [chunk.text.lower() for chunk in nlp(text).noun_chunks]

    return phrases


def _ends(word: str, run: list[str]) -> bool:
    """Whether a word ends the phrase so far and belongs to none."""
    if not (word[0].isalpha() or word.isdigit()):
        return True
    if word in _BREAKS or word in _VERBS:
        return True
    if _ADVERB.fullmatch(word) and word not in _LY_OTHERS:
        return True
    if _ING.fullmatch(word) and word not in _ING_NOUNS:
        return True
    after_noun = bool(run)
    return bool(after_noun and _ED.fullmatch(word) and word not in _ED_OTHERS)


def _finish(run: list[str], found: list[str]) -> None:
    if run and not all(word.isdigit() for word in run):
        found.append(" ".join(run))
    run.clear()
