"""`llava chat`: the conversation (`session`), what a slash does (`commands`), where lines come from
(`lines`), and what becomes of it on disk (`saved`)."""
