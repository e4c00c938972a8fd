"""The HTTP server: OpenAI's and A1111's APIs and a page, over the pipeline."""
