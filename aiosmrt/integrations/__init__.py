"""Integrations with other frameworks: a module or package for each, and an extra that installs what it needs."""
