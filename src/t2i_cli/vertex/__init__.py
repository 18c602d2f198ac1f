"""Vertex AI: plan, deploy, list and remove endpoints."""
