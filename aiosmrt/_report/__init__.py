"""What jobs and load tests measure, and the page that shows it; pure: times are arguments, nothing is written here."""
