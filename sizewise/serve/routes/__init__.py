"""Endpoints: read a body, call one thing, write the answer."""
