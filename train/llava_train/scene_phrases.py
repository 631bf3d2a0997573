"""The phrasings of questions about a scene, as data."""

from __future__ import annotations

SHORT = "Answer the question using a single word or phrase."
"""LLaVA 1.5's suffix for short answers."""

BRIEF = (
    "Describe the picture briefly.",
    "Say in one sentence what you see.",
    "What is this?",
    "What do you see?",
    "Give a short caption for this image.",
    "Summarize the picture in a few words.",
    "Write a brief description of the image.",
    "Caption this.",
)
DETAIL = (
    "Describe the picture in detail.",
    "Describe this image.",
    "Describe everything you see in the image.",
    "Give a detailed description of the picture.",
    "What exactly does the picture show?",
    "List all the shapes and where they are.",
    "Go through the picture and describe every shape.",
    "Explain in detail what is shown here.",
    "Tell me everything about this picture.",
    "What shapes are in this picture?",
    "What is in this picture?",
)
UNUSUAL = (
    "What is unusual here?",
    "What is unusual in this picture?",
    "What is unusual about this image?",
    "What's unusual?",
    "What is odd here?",
    "What is strange in this picture?",
    "What stands out?",
    "Which shape is the odd one out?",
    "Which one is the odd one out?",
    "Which shape does not belong?",
    "Which one is different from the others?",
    "Which shape is different?",
    "Find the odd one out and explain why.",
    "Name the odd one out.",
    "Which shape stands out, and why?",
    "What does not fit here?",
)
ANYTHING = (
    "Is anything unusual here?",
    "Is there anything unusual in this picture?",
    "Is there an odd one out?",
    "Does any shape stand out?",
    "Is one of the shapes different from the others?",
)
WHY = ("Why?", "Why is that?", "How do you know?", "Explain why.")
COUNT = (
    "How many shapes are there?",
    "How many shapes are in the picture?",
    "How many shapes do you see?",
    "How many objects are there?",
    "How many objects are in this image?",
    "How many things can you see?",
    "Count the shapes.",
    "Count all the objects in the image.",
    "What is the number of shapes?",
    "What is the total number of objects?",
)
