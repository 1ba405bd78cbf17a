"""AWS Signature Version 4: the algorithm (`canonical`), the client's side (`signer`), the server's side (`verify`)."""
