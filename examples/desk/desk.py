"""The loans desk of a small library: an environment with six tools, for `tool_dialogue`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instructgen.environments import SqliteEnvironment, ToolError

MOST_LOANS, DAYS, MOST_RENEWALS = 3, 21, 2
# The days are numbered; this is today.
TODAY = 100


class LoansDesk(SqliteEnvironment):
    """Members borrow, renew, return and reserve books."""

    name = "loans_desk"
    script = Path(__file__).with_name("desk.sql")

    def find_books(self, words: str) -> list[dict[str, Any]]:
        """Return the books whose title or author contains the words."""
        found = self.rows(
            "select id as book_id, title, author from books where title like ?1 or author like ?1 "
            "order by id",
            f"%{words}%",
        )
        return [{**book, "available": self._available(book["book_id"])} for book in found]

    def member(self, member_id: int) -> dict[str, Any]:
        """Return the name, the fees in cents, the loans and the reservations of a member."""
        found = self._one("members", member_id)
        loans = self.rows(
            "select book_id, title, due, renewals from loans join books on books.id = book_id "
            "where member_id = ? order by book_id",
            member_id,
        )
        reserved = self.rows(
            "select book_id from reservations where member_id = ? order by book_id", member_id
        )
        books = [row["book_id"] for row in reserved]
        return {"name": found["name"], "fees": found["fees"], "loans": loans, "reserved": books}

    def lend(self, member_id: int, book_id: int) -> dict[str, Any]:
        """Lend a book for three weeks."""
        member, book = self._one("members", member_id), self._one("books", book_id)
        if member["fees"]:
            raise ToolError(f"{member['name']} has to pay fees of {member['fees']} cents first")
        loans = self.rows("select * from loans where member_id = ?", member_id)
        if any(loan["book_id"] == book_id for loan in loans):
            raise ToolError(f"{member['name']} already has this book")
        if len(loans) >= MOST_LOANS:
            raise ToolError(f"{member['name']} already has {MOST_LOANS} books")
        if not self._available(book_id, member_id):
            raise ToolError(f"no copy of {book['title']} is available")
        self.database.execute(
            "delete from reservations where member_id = ? and book_id = ?", (member_id, book_id)
        )
        self.database.execute(
            "insert into loans values (?, ?, ?, 0)", (member_id, book_id, TODAY + DAYS)
        )
        return {"due": TODAY + DAYS}

    def renew(self, member_id: int, book_id: int) -> dict[str, Any]:
        """Renew a loan for three weeks."""
        loan = self._loan(member_id, book_id)
        if loan["renewals"] >= MOST_RENEWALS:
            raise ToolError(f"the loan was already renewed {MOST_RENEWALS} times")
        if self.rows(
            "select * from reservations where book_id = ? and member_id <> ?", book_id, member_id
        ):
            raise ToolError("another member has reserved the book")
        self.database.execute(
            "update loans set due = due + ?, renewals = renewals + 1 where member_id = ? and "
            "book_id = ?",
            (DAYS, member_id, book_id),
        )
        return {"due": loan["due"] + DAYS}

    def take_back(self, member_id: int, book_id: int) -> dict[str, Any]:
        """Take a book back. For each day that it is late, the member owes 20 cents."""
        late = max(0, TODAY - self._loan(member_id, book_id)["due"])
        self.database.execute(
            "delete from loans where member_id = ? and book_id = ?", (member_id, book_id)
        )
        self.database.execute(
            "update members set fees = fees + ? where id = ?", (20 * late, member_id)
        )
        return {"days_late": late, "fee": 20 * late}

    def reserve(self, member_id: int, book_id: int) -> dict[str, Any]:
        """Reserve a book of which no copy is available."""
        member, book = self._one("members", member_id), self._one("books", book_id)
        mine = "where member_id = ? and book_id = ?"
        if self.rows(f"select * from loans {mine}", member_id, book_id):
            raise ToolError(f"{member['name']} has this book")
        if self.rows(f"select * from reservations {mine}", member_id, book_id):
            raise ToolError(f"{member['name']} has already reserved this book")
        if self._available(book_id):
            raise ToolError(f"a copy of {book['title']} is available")
        self.database.execute("insert into reservations values (?, ?)", (member_id, book_id))
        place = len(self.rows("select * from reservations where book_id = ?", book_id))
        return {"place_in_queue": place}

    def _available(self, book_id: int, member_id: int = 0) -> int:
        """Return the number of copies that a member could borrow now."""
        lent = self.rows("select * from loans where book_id = ?", book_id)
        # A reservation has precedence over later ones.
        before = self.rows(
            "select * from reservations where book_id = ?1 and rowid < coalesce((select rowid from "
            "reservations where book_id = ?1 and member_id = ?2), 1000000)",
            book_id,
            member_id,
        )
        copies: int = self._one("books", book_id)["copies"]
        return max(0, copies - len(lent) - len(before))

    def _one(self, table: str, number: int) -> dict[str, Any]:
        found = self.rows(f"select * from {table} where id = ?", number)
        if not found:
            raise ToolError(f"there is no number {number} among the {table}")
        return found[0]

    def _loan(self, member_id: int, book_id: int) -> dict[str, Any]:
        self._one("members", member_id)
        found = self.rows(
            "select * from loans where member_id = ? and book_id = ?", member_id, book_id
        )
        if not found:
            raise ToolError(f"member {member_id} does not have book {book_id}")
        return found[0]
