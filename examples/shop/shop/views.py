from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from celeriac import chord
from celeriac.django.keys import key_of

from . import tasks
from .forms import OrderForm, PictureForm, RegistrationForm, SalesImportForm
from .models import Customer, Order, Picture, Report


def home(request):
    return render(
        request,
        "shop/home.html",
        {
            "registration_form": RegistrationForm(),
            "order_form": OrderForm(),
            "picture_form": PictureForm(),
            "import_form": SalesImportForm(),
            "pictures": Picture.objects.all(),
        },
    )


@require_POST
def register(request):
    form = RegistrationForm(request.POST)
    if not form.is_valid():
        return render(request, "shop/form.html", {"form": form}, status=400)
    with transaction.atomic():
        user = form.save()
        Customer.objects.create(user=user, birthday=form.cleaned_data["birthday"])
        tasks.send_welcome.delay(user.pk)  # if the transaction fails, nobody is welcomed
    login(request, user)
    return redirect("home")


@login_required
@require_POST
def place_order(request):
    form = OrderForm(request.POST)
    if not form.is_valid():
        return render(request, "shop/form.html", {"form": form}, status=400)
    form.instance.customer = request.user.customer
    order = form.save()
    result = tasks.process_order.apply_async(
        (order.pk,),
        priority=9 if form.cleaned_data["express"] else 4,
        link_error=tasks.order_failed.s(),
    )
    return redirect("order", order.pk, result.id)


@login_required
def show_order(request, order_id, task_id):
    order = get_object_or_404(Order, pk=order_id, customer__user=request.user)
    return render(request, "shop/order.html", {"order": order, "task_id": task_id})


@require_POST
def add_picture(request):
    form = PictureForm(request.POST, request.FILES)
    if not form.is_valid():
        return render(request, "shop/form.html", {"form": form}, status=400)
    picture = form.save()
    thumbnails = [tasks.make_thumbnail.s(picture.pk, size) for size in tasks.SIZES]
    result = chord(thumbnails, tasks.keep_thumbnails.s(picture.pk)).delay()
    return render(request, "shop/progress.html", {"title": "Thumbnails", "task_id": result.id, "next": "/"})


@require_POST
def import_sales(request):
    form = SalesImportForm(request.POST, request.FILES)
    if not form.is_valid():
        return render(request, "shop/form.html", {"form": form}, status=400)
    result = tasks.import_sales.delay(form.save().pk)
    return render(request, "shop/progress.html", {"title": "Import", "task_id": result.id})


@require_POST
def make_report(request):
    report = Report.objects.create()
    result = tasks.make_report.delay(report.pk)
    return render(request, "shop/progress.html", {"title": "Report", "task_id": result.id, "next": f"/reports/{report.pk}/"})


def show_report(request, report_id):
    return render(request, "shop/report.html", {"report": get_object_or_404(Report, pk=report_id)})


@require_POST
def compare_prices(request):
    """Its answer comes over a WebSocket: see static/shop/live.js."""
    return render(request, "shop/live.html", {"key": key_of(tasks.compare_prices.delay())})
