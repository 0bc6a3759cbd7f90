"""The weekend tutorial: FastAPI, a model that is loaded at import, and `predict` in the route."""

import os

import joblib
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
model = joblib.load(os.environ["MODEL"])


class TextIn(BaseModel):
    """What a caller sends."""

    text: str


@app.post("/predict")
def predict(body: TextIn) -> dict[str, str]:
    """Tell the sentiment of one text."""
    return {"sentiment": model.predict([body.text])[0]}
