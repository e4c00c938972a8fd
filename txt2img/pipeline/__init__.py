"""Pipeline: a request and a model into pictures."""
