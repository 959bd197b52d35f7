"""Ask the teacher at every boundary of one student's tokens (`capture --boundaries-of`)."""
