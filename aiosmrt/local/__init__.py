"""A SageMaker Runtime on loopback, for tests, demonstrations and development without AWS."""
