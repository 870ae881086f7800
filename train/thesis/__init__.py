"""The paper's thesis in miniature: an editor and a generator, alike in all else, become estimators. See docs/thesis.md."""
