"""Captions for many pictures: which ones, what is asked, where the captions go, what was done.

`sources` finds pictures, `wording` makes prompts and finishes captions, `journal` remembers what a
killed run had done, `sidecars` and `collections` are the forms of output, `run` joins them. Not
here: arguments and progress (`cli/caption.py`), the model (`engines`).
"""
