"""Words of a caption as the COCO caption evaluation sees them, without Java.

The official code runs Stanford's PTBTokenizer 3.4.1 with ``-lowerCase`` and then removes a fixed
list of punctuation. This module follows that tokeniser's observable behaviour on captions: Penn
Treebank contractions (``ca n't``, ``it 's``, ``gon na``), abbreviations that keep their point,
numbers, acronyms, hyphenated and slashed words kept whole. Two consequences of the official order
look like mistakes and are kept: brackets are not removed (they are lower-cased to ``-lrb-`` before
the list, which has ``-LRB-``, is applied), and neither are runs of marks such as ``!!``.

Known differences, in rare text only: telephone numbers, e-mail-like and emoticon-like strings.
"""

from __future__ import annotations

import re

__all__ = ["PUNCTUATION", "tokenize"]

_MARKS = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
#: What the official code removes after tokenising.
PUNCTUATION = frozenset(_MARKS.split())

# Abbreviations that keep their point, whatever follows.
_ABBREVIATIONS = """
al cf co ct dr ft ga jr ky lt md mo mr ms mt ph rd rt sq sr st va vs vt wm adj adm adv ala apr aug
ave bhd cie col cos cpl dak dec det drs ens esq est etc ext feb fla fri gen gov hon inc ind jan jos
jul jun kan ltd maj mar mfg mme mon mrs mtg neb nev nov oct pfc plc pte pty pvt rep rev sen sep seq
sfc sgt spc ste sys tel thu tue wed wis wyo alex ariz assn asst atty bldg blvd brig bros capt cmdr
colo conn corp dept elec govs insp intl invt kans mich minn mlle mont msgr natl okla penn ppte ppty
pres prof ptes ptys reps sens sept supt tenn tues univ wisc thurs calif bancorp messrs lieut assoc
"""

_LETTER = r"[^\W\d_]"
_ALNUM = r"[^\W_¼½¾]"
_CLITIC = r"'(?:s|m|d|ll|re|ve)(?![^\W_])"
_DECIMAL = r"[.,]?\d+(?:[.,]\d+)*"  # 1,000.50 and .5 and ,5

# The first alternative that matches at a place wins, so longer forms stand before their parts.
_TOKEN = re.compile(
    "|".join(
        [
            r"</?[a-z]\w*(?:\s[^<>']*)?/?>",
            rf"https?://[^\s<>\"]*[^\s<>\".,:;!?)]|[\w.]+@\w+(?:\.\w+)*|@\w+|\#{_LETTER}\w*",
            r"[:;=]-?(?:[()\]]|[dp](?!\w))",
            # Words that are two: can not, gon na, lem me, 't is.
            r"\b(?:can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)|(?:lem|gim)(?=me\b)|more(?='n\b))",
            r"'t(?=(?:is|was)\b)",
            # u.s. and a.m.; mr. and st.; no. 5; one letter and a point.
            rf"(?<!{_LETTER})(?:{_LETTER}\.){{2,}}(?:-{_LETTER}+)?(?!{_LETTER})",
            rf"\b(?:{'|'.join(_ABBREVIATIONS.split())})\.(?!\w)",
            r"\b(?:art|figs?|nos?|pp?)\.(?=\s*\d)",
            rf"(?<![\w']){_LETTER}\.(?!{_LETTER})",
            r"(?-i:\b[A-Z]+(?:[&+][A-Z]+)+)",
            r"(?-i:\b[A-Z]*)\$|\bc(?:\+\+|\#)|<+|>+|''|``",
            # Apostrophes: ca n't, it 's, o'clock, ma'am, y'all, rock 'n' roll, the '90s.
            rf"\b{_ALNUM}+?(?=n't\b)|n't\b|{_CLITIC}",
            rf"\b[dol]'(?!(?:s|m|d|ll|re|ve)\b){_LETTER}+|\b(?:ma'am|c'mon|s'mores)\b",
            r"\b(?:y|d|ol)'|'n'(?!s\b)|'(?:em|til|cause|n)(?!\w)|(?<!\w)'\d\ds?(?!\w)",
            # Numbers and words, with what joins them.
            rf"(?<!\w)[+-]?{_DECIMAL}(?:[-/]{_ALNUM}+)+",
            rf"(?<![\w-])[+-]{_DECIMAL}(?!\w)|\d+(?:[:.,]\d+)+|[.,:]\d+(?:[:.,]\d+)*",
            rf"{_LETTER}+(?:[.!?]{_LETTER}+)+(?![-/'])",
            rf"{_ALNUM}+(?:[-/_\u2010\u2011]{_ALNUM}+)*",
            r"\.(?:\s?\.){2,}|\?[?!]*|![?!]*|-+|\*+|_+|\S",
        ]
    ),
    re.IGNORECASE,
)

_SPELLED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "£": "#",
    "€": "$",
    "¢": "cents",
    "¼": "1/4",
    "½": "1/2",
    "¾": "3/4",
}
_REMOVED = PUNCTUATION | set('"«»')
_REPLACED = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "--", "—": "--", "―": "--"}
    | {"…": "...", "\u00a0": " ", "\u00ad": ""}
)
_ENTITIES = (("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&nbsp;", " "))


def tokenize(text: str) -> list[str]:
    """Lower-cased words of one caption, punctuation removed.

    >>> tokenize("A man can't park his car (red).")
    ['a', 'man', 'ca', "n't", 'park', 'his', 'car', '-lrb-', 'red', '-rrb-']
    """
    for entity, mark in _ENTITIES:
        text = text.replace(entity, mark)
    words: list[str] = []
    for token in _TOKEN.findall(text.translate(_REPLACED)):
        if not token.startswith("..") and token.strip("-"):  # an ellipsis, a dash
            words += [word for word in _spell(token).split() if word not in _REMOVED]
    return words


def _spell(token: str) -> str:
    word = token.lower()
    if word[0] in ":;=" and len(word) > 1:  # a face keeps its mouth in one word with its eyes
        return word.replace("(", "-lrb-").replace(")", "-rrb-")
    return _SPELLED.get(word, word)
