"""The API dialects of the server: OpenAI, Vertex AI, POST /predict, and t2i's own."""
