"""The paper's evaluation: nine benchmarks read from their published archives, any predictor, tables like the paper's."""
