"""Tests of the comparison itself; they measure nothing."""
