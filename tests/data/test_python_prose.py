import re

import pytest

from minigpt_ext.data.corpora import load_corpus
from minigpt_ext.data.python_prose import prose_paragraphs, python_prose


@pytest.fixture(scope="module")
def prose():
    return python_prose()


def test_it_is_about_a_megabyte_of_plain_ascii(prose):
    assert 300_000 < len(prose) < 3_000_000
    assert prose.isascii() and prose.endswith("\n")
    assert len(set(prose)) < 90
    assert not re.search(r"  |\n\n|>>>|::|``|:[a-z]+:|\*\*|[_=<>{}\[\]|#@\\~^]", prose)


def test_it_reads_as_english(prose):
    paragraphs = prose.splitlines()
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(p[0].isupper() and p.rstrip(")")[-1] in ".?!" for p in paragraphs)
    words = re.findall(r"[a-z]+", prose.lower())
    common = {"the", "a", "of", "to", "is", "and", "in", "that", "for", "be"}
    assert sum(word in common for word in words) > 0.2 * len(words)  # as in English at large


def test_it_is_the_same_every_time(prose):
    assert load_corpus(["python"]).text == prose


def paragraphs(text):
    return list(prose_paragraphs(text))


def test_markup_goes_and_words_stay():
    text = 'The :class:`~os.PathLike` object, when ``None`` is *given* to the "open()"\nmethod, is given  as it is. [3]'
    assert paragraphs(text) == ["The os.PathLike object, when None is given to the open method, is given as it is."]


def test_code_tables_doctests_titles_and_signatures_are_left_out():
    text = """Sequence Types
==============

    >>> a = [1]
    >>> a.append(2)

open(file, mode='r') -> file object

+------+-----+
| a    | b   |
+------+-----+

   if x < y:
       return the_list[0]

.. versionadded:: 3.4

For example::

* The first item of the list is a sentence that stays.
* no_sentence = True
- And so does the second one, which goes on
  in the next line of the text.
"""
    assert paragraphs(text) == [
        "The first item of the list is a sentence that stays.",
        "And so does the second one, which goes on in the next line of the text.",
    ]


def test_a_sentence_that_is_not_plain_is_left_out_of_its_paragraph():
    text = "This is the first sentence of the text. Use x = y_1[0] in it. And this is the last of them."
    assert paragraphs(text) == ["This is the first sentence of the text. And this is the last of them."]


def test_without_sources_the_error_says_where_they_were_sought(tmp_path, monkeypatch):
    monkeypatch.setattr("minigpt_ext.data.python_prose._documents", lambda library: iter(()))
    with pytest.raises(ValueError, match="no standard-library sources.*--data PATH"):
        python_prose()
