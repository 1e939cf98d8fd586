"""Mail to one person."""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from email.utils import make_msgid

from kneo.errors import Invalid
from kneo.notify.channels import Mail
from kneo.notify.messages import release_words, task_subject, task_words

_MAILBOX = re.compile(r'[^\s@<>()\[\]{},;:\\"]{1,64}@[^\s@<>()\[\]{},;:\\"]{1,253}')
"""One plain address. Signs with a meaning in headers would make several addresses of a name, or another person's."""

SECONDS = 10.0
"""Longest one answer of a mail server may take."""


def write_mail(channel: Mail, to: str, notice: Mapping[str, object], message_id: str) -> EmailMessage:
    """Write a mail; the same message to the same person always has the same id, so that a repetition is known as one.

    Raises:
        Invalid: ``invalid_address``: what stands for the receiver is not exactly one address.
    """
    if not (_MAILBOX.fullmatch(to) and to.isprintable()):
        msg = "the name of the person makes no single mail address"
        raise Invalid(msg, code="invalid_address")
    mail = EmailMessage()
    about_task = notice.get("about") == "task"
    mail["From"] = channel.sender
    mail["To"] = to
    mail["Subject"] = task_subject(notice) if about_task else release_words(notice)[:200]
    mail["Message-ID"] = _message_id(channel, message_id)
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(task_words(notice) if about_task else release_words(notice))
    return mail


def _message_id(channel: Mail, message_id: str) -> str:
    domain = channel.sender.rpartition("@")[2]
    made = make_msgid(domain=domain)
    return f"<{message_id}@{made.rpartition('@')[2]}"


def send_mail(channel: Mail, mail: EmailMessage) -> str | None:
    """Hand a mail to its server; return what went wrong, without addresses and passwords."""
    context = ssl.create_default_context()
    try:
        if channel.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(channel.host, channel.port, timeout=SECONDS, context=context)
        else:
            server = smtplib.SMTP(channel.host, channel.port, timeout=SECONDS)
        with server:
            if channel.security == "starttls":
                server.starttls(context=context)
            if channel.user:
                server.login(channel.user, channel.password)
            server.send_message(mail)
    except smtplib.SMTPResponseException as error:
        return f"answered {error.smtp_code}"
    except (smtplib.SMTPException, OSError) as error:
        return f"no answer: {type(error).__name__}"
    return None
