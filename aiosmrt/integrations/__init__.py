"""What joins aiosmrt to other packages: a module for each, which needs that package's extra and nobody else imports."""
