"""Figures of the methods for the cards and the README."""
