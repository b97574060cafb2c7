"""What things say: text to vectors.

`tfidf` by words, `text` by a transformer with `cache` for what it read before, and `whitening` to
make a transformer's cosines tell texts apart. `words` is how text is cut for the first.
`pretraining` teaches a transformer the shop's language: by `masking` whole words of the `corpus`,
from scratch with a `vocabulary` of its own.
"""
