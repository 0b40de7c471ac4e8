"""Verbs that teach a trained model a task: finetune, classify."""

from __future__ import annotations
