"""What botocore and aiobotocore know: credentials, endpoint rules, shared configuration."""
