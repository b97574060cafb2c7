"""What things say: text to vectors, and pictures.

`tfidf` by words, `text` by a transformer, `images` by a vision model, both with `cache` for what
they read before, and `whitening` to make a model's cosines tell things apart. `words` is how text
is cut for the first, `pictures` how a file is found and decoded, `folders` how a model is loaded.
`pretraining` teaches a transformer the shop's language: by `masking` whole words of the `corpus`,
from scratch with a `vocabulary` of its own. `finetuning` teaches it what people chose and said:
`examples` are read from the tables, `tuned` says which weights move, `objectives` mixes what is
learned (`next_product`, `pairs`, `labels`), and `predicting` lets the heads speak again.
"""
